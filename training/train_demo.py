"""Make the demo model and its draft from nothing: text, tokenizer, training, measurement, export.

python training/train_demo.py --out OUT --minutes 7.5      # one GPU
python training/train_demo.py --out OUT --toy              # a CPU, to see that it runs
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

BOUNDS = [48, 96, 160, 256, 352, 512, 1024, 2048]
"""Lengths that rows are padded to."""
ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "plugins/sources/demo/data"
BEGIN = time.monotonic()

# the engine that is asked is this tree's, installed or not
sys.path.insert(0, str(ROOT))


def log(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {text}", flush=True)


def make_tokenizer(seed: int, count: int) -> Any:
    from demomodel import chat_format, corpus, tokenizer

    stream = itertools.islice(corpus.samples(seed), count)
    return tokenizer.train("".join(text for text, _ in chat_format.pieces(sample)) for sample in stream)


def evaluate(options: argparse.Namespace) -> None:
    """What --evaluate does."""
    from demomodel import evaluation, export

    outputs: list[tuple[list[int], list[int]]] = []
    for name in ("chat", "draft"):
        folder = options.models / name
        log(f"measuring {folder}")
        scores = evaluation.measure(folder, options.seed + 5000, options.questions, threads=options.threads)
        agreed = evaluation.agreement(folder, outputs, options.threads) if outputs else None
        if agreed is not None:
            log(f"the draft proposes {agreed:.1%} of the chat model's tokens right")
        outputs = outputs or scores.outputs
        if options.update_cards:
            export.measured_again(folder, scores.shares, agreed)
    log("done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for chat.tar, draft.tar")
    parser.add_argument("--evaluate", action="store_true", help="train nothing; measure the models in --models")
    parser.add_argument("--models", type=Path, default=BUNDLED, help="with --evaluate: a folder with chat/ and draft/")
    parser.add_argument("--update-cards", action="store_true", help="with --evaluate: put the figures into the cards")
    parser.add_argument("--threads", type=int, help="threads of the engine that is asked; unset: every core")
    parser.add_argument("--minutes", type=float, default=7.5, help="wall time of everything")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=360_000_000, help="tokens of training text")
    parser.add_argument("--step-tokens", type=int, default=131_072, help="tokens of a training step")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--questions", type=int, default=400, help="held-out questions of each kind")
    parser.add_argument("--matrix-rate", type=float, default=6e-3, help="peak learning rate of the layers' matrices")
    parser.add_argument("--other-rate", type=float, default=4e-3, help="peak learning rate of everything else")
    parser.add_argument("--toy", action="store_true", help="seconds instead of minutes; the models will be useless")
    options = parser.parse_args()
    if options.evaluate:
        evaluate(options)
        return
    if options.out is None:
        parser.error("--out is missing: name a folder for the models, or give --evaluate")
    if options.toy:
        options.tokens, options.step_tokens, options.questions = 400_000, 4096, 4
        options.minutes = min(options.minutes, 2.0)

    import torch
    from demomodel import corpus, evaluation, export, network, trainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    log(f"torch {torch.__version__} on {device}, {options.processes} processes")

    tokenizer = make_tokenizer(options.seed + 1000, 4000 if options.toy else 40_000)
    tokenizer.save(str(work / "tokenizer.json"))
    log(f"tokenizer of {tokenizer.get_vocab_size()} tokens")

    shard = corpus.build(
        str(work / "tokenizer.json"),
        options.seed,
        options.tokens,
        options.processes,
        50_000 if options.toy else 1_000_000,
    )
    log(
        f"{len(shard.tokens):,} tokens of text in {len(shard.lengths):,} samples, "
        f"{float((shard.weights == 50).mean()):.0%} of them answers"
    )
    parts = trainer.buckets(shard, BOUNDS, options.step_tokens, device)
    text_tokens = len(shard.tokens)
    del shard
    log("text is on the device")

    # measuring, exporting and compiling have to fit behind and between the two trainings
    reserve = 20.0 if options.toy else 180.0
    left = options.minutes * 60 - (time.monotonic() - BEGIN) - reserve
    shares = {"chat": 0.8, "draft": 0.2}
    shapes = {"chat": network.CHAT, "draft": network.DRAFT}
    for name, shape in shapes.items():
        log(f"training {name} for {left * shares[name]:.0f} s")
        rates = (options.matrix_rate, options.other_rate)
        trained = trainer.train(
            shape, parts, max(5.0, left * shares[name]), device, rates, options.seed, 10 if options.toy else 250
        )
        export.write(work / name, trained, tokenizer)
        export.pack(work / name, options.out / f"{name}.tar")
        log(f"{name} is exported")
        del trained
    del parts

    run = {
        "text": f"{text_tokens / 1e6:.0f} million tokens, seed {options.seed}",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU",
        "software": f"torch {torch.__version__}",
    }
    try:
        scores = {}
        for name in shapes:
            log(f"measuring {name}")
            scores[name] = evaluation.measure(
                work / name, options.seed + 5000, options.questions, 8 if options.toy else 450, options.threads
            )
        agreed = evaluation.agreement(work / "draft", scores["chat"].outputs, options.threads)
        log(f"the draft agrees with {agreed:.1%} of the chat model's tokens")
        note = (
            f"The draft proposes {agreed:.1%} of the chat model's greedy tokens right, one by one, on those questions."
        )
        export.card(
            work / "chat",
            "Backplane demo model",
            "A very small chat model that comes with Backplane, so that everything can be tried without a download: "
            "streaming,\nJSON, tool calls, prefix caching, and, with the draft beside it, speculative decoding.",
            shapes["chat"],
            scores["chat"].shares,
            {**run, "training": f"{left * shares['chat']:.0f} s"},
            [],
        )
        export.card(
            work / "draft",
            "Backplane demo draft model",
            "The draft of the Backplane demo model for speculative decoding: the same tokenizer, the same text, a fifth "
            f"of the size.\n{note}",
            shapes["draft"],
            scores["draft"].shares,
            {**run, "training": f"{left * shares['draft']:.0f} s"},
            ["It is a draft: alone it answers much worse than the model it belongs to."],
        )
        for name in shapes:
            export.pack(work / name, options.out / f"{name}.tar")
        print("\nwrong answers of the chat model, some of each kind:")
        for kind, prompt, answer in scores["chat"].wrong:
            print(f"--- {kind}\n{prompt}\n=> {answer}")
    except Exception:  # the models are exported already; a failed measurement must not lose them
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        log("done")


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
