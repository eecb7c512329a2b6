"""What exported models get right on held-out questions: greedy answers of this repository's own engine, on a CPU.

The same figures come out wherever this runs, so a model card's table can be made again by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demomodel import chat_format
from demomodel.corpus import KINDS, held_out_samples
from demomodel.grading import right

SEED, QUESTIONS = 5001, 400
"""Which held-out questions a model card's table is about, and how many of each kind."""

# answers that do not end by themselves are cut here
LIMITS = {"story": 450, "no tool": 450, "extraction": 220}
LIMIT = 160

Shares = dict[str, tuple[int, int]]
"""Kind -> right answers, questions."""


@dataclass(slots=True)
class Scores:
    shares: Shares
    wrong: list[tuple[str, str, str]]
    """Some wrong answers: kind, the prompt's end, the answer."""
    outputs: list[tuple[list[int], list[int]]]
    """Prompt and answer of every question, as token ids."""


def engine_of(folder: Path, threads: int | None) -> Any:
    from core import Engine

    return Engine(str(folder), device="cpu", dtype="float32", num_threads=threads)


def measure(
    folder: Path, seed: int = SEED, count: int = QUESTIONS, most: int = 450, threads: int | None = None
) -> Scores:
    """Ask up to `count` held-out questions of each kind; answers are cut after `most` tokens."""
    from core import SamplingParams

    scores = Scores({}, [], [])
    with engine_of(folder, threads) as engine:
        for kind in KINDS:
            asked = held_out_samples(seed, kind, count)
            prompts = [chat_format.prompt(sample) for sample in asked]
            greedy = SamplingParams(temperature=0, max_tokens=min(most, LIMITS.get(kind, LIMIT)))
            outputs = engine.generate(prompts, greedy, use_tqdm=False)
            texts = [output.outputs[0].text for output in outputs]
            verdicts = [right(sample.check, text) for sample, text in zip(asked, texts, strict=True)]
            scores.shares[kind] = (sum(verdicts), len(verdicts))
            scores.outputs += [(output.prompt_token_ids, output.outputs[0].token_ids) for output in outputs]
            wrong = [(kind, p[-300:], t) for p, t, ok in zip(prompts, texts, verdicts, strict=True) if not ok]
            scores.wrong += wrong[:6]
            print(f"  {kind:12s} {share(scores.shares[kind]):>6s} of {len(verdicts)}", flush=True)
    return scores


def share(counted: tuple[int, int]) -> str:
    """As a model card states it."""
    good, number = counted
    return f"{good / max(1, number):.1%}"


def agreement(draft: Path, outputs: list[tuple[list[int], list[int]]], threads: int | None = None) -> float:
    """The share of the chat model's tokens that the draft model would have proposed at that place."""
    from core import SamplingParams

    same = total = 0
    with engine_of(draft, threads) as engine:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        answered = [(prompt, answer) for prompt, answer in outputs if answer]
        scored = engine.generate([prompt + answer for prompt, answer in answered], params, use_tqdm=False)
        for (_, answer), output in zip(answered, scored, strict=True):
            # the first of each position is the prompt's own token
            ranks = [position[0].rank for position in output.prompt_logprobs[-len(answer) :]]
            same += ranks.count(1)
            total += len(answer)
    return same / max(1, total)
