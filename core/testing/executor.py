"""check_executor: an engine on this executor gives the tokens of one that runs in the caller's process."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.engine.engine import Engine
from core.errors import BackplaneError
from core.sampling_params import SamplingParams

NUM_NEW = 12


def check_executor(name: str, *, model: str = "demo", **options: Any) -> None:
    """Raise AssertionError unless `--executor name` gives what `in_process` gives: tokens, greedy and seeded, with logprobs,
    and embeddings.

    name: as registered by an installed plugin. options: of Engine, for both. Prompts of several lengths run together,
    cut into chunks of 24 tokens, so that steps mix prompts and decodes.
    """
    options = {"max_num_batched_tokens": 24, "num_blocks": 64, "max_model_len": 256, **options}
    wanted = _outputs("in_process", model, options)
    got = _outputs(name, model, options)
    for i, (mine, reference) in enumerate(zip(got, wanted, strict=True)):
        where = f"executor {name!r}: request {i}"
        assert mine[0] == reference[0], f"{where} gives tokens {mine[0]}, in_process gives {reference[0]}"
        off = max(abs(a - b) for a, b in zip(mine[1], reference[1], strict=True))
        assert off < 1e-2, f"{where}: log probabilities differ by {off:.3g} from those of in_process"
    for rule in ("last", "mean"):
        theirs, ours = (_vectors(n, model, {**options, "pooling_type": rule}) for n in (name, "in_process"))
        for i, (vector, expected) in enumerate(zip(theirs, ours, strict=True)):
            off = float(abs(vector - expected).max())
            assert off < 1e-2, f"executor {name!r}: embedding {i} ({rule}) differs by {off:.3g} from that of in_process"


PROMPTS = [[5 + (7 * i + n) % 200 for i in range(n)] for n in (1, 16, 17, 50)]


def _vectors(executor: str, model: str, options: dict[str, Any]) -> list[np.ndarray]:
    with Engine(model, executor=executor, **options) as engine:
        try:
            return [o.outputs.vector for o in engine.embed(PROMPTS, use_tqdm=False)]
        except BackplaneError as error:
            raise AssertionError(f"executor {executor!r} gives no embeddings: {error}") from error


def _outputs(executor: str, model: str, options: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
    base: dict[str, Any] = {"max_tokens": NUM_NEW, "ignore_eos": True, "logprobs": 0}
    choices: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"seed": 3})
    params = [SamplingParams(**base, **more) for more in choices]
    with Engine(model, executor=executor, **options) as engine:
        outputs = engine.generate([p for p in PROMPTS for _ in params], params * len(PROMPTS), use_tqdm=False)
        stats = engine.stats()
        assert stats.num_free_blocks == stats.num_blocks, (
            f"executor {executor!r}: {stats.num_blocks - stats.num_free_blocks} blocks are held after the last request"
        )
    # a second shutdown is allowed
    engine.shutdown()
    answers = [o.outputs[0] for o in outputs]
    return [(list(a.token_ids), [p[0].logprob for p in a.logprobs or ()]) for a in answers]
