"""Guided requests on a GPU: masks from pinned memory, under graphs and overlap, give what they give without."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from core import Engine, GuidedDecodingParams, SamplingParams

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
KINDS = [
    GuidedDecodingParams(json=SCHEMA),
    None,
    GuidedDecodingParams(regex="[a-z]{5,9} [0-9]{2}"),
    GuidedDecodingParams(choice=["yes", "no", "perhaps"]),
    None,
]


def params(temperature: float) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=temperature, seed=i, max_tokens=64, guided_decoding=KINDS[i % len(KINDS)])
        for i in range(40)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_overlap_and_graphs_change_nothing(temperature):
    prompts = [f"Tell me of number {i}:" for i in range(40)]
    found = []
    for options in ({}, {"enforce_eager": True, "async_scheduling": False}):
        with Engine("demo", dtype="float32", max_num_seqs=48, num_blocks=2048, **options) as engine:
            for _ in range(2):  # the second time with other rows and a buffer of full size
                outputs = engine.generate(prompts, params(temperature), use_tqdm=False)
            found.append([o.outputs[0].token_ids for o in outputs])
    assert found[0] == found[1]
    for i, output in enumerate(outputs):
        text, ended = output.outputs[0].text, output.outputs[0].finish_reason == "stop"
        kind = KINDS[i % len(KINDS)]
        if kind is None or not ended:
            continue
        if kind.json is not None:
            assert set(json.loads(text)) == {"name", "age"}
        elif kind.regex is not None:
            assert re.fullmatch(kind.regex, text)
        else:
            assert text in kind.choice
    assert sum(o.outputs[0].finish_reason == "stop" for i, o in enumerate(outputs) if KINDS[i % 5]) >= 16


def test_masks_are_sent_from_where_they_lie():
    with Engine("demo", dtype="float32", max_num_seqs=4, num_blocks=64, max_model_len=512) as engine:
        executor = engine._loop.executor
        lines = executor.mask_buffer(9, 100)
        assert lines.shape == (9, 100) and lines.dtype == np.int32
        lines[:] = np.arange(900).reshape(9, 100)
        part = torch.from_numpy(lines[2:5])
        assert part.is_pinned() and part.pin_memory().data_ptr() == part.data_ptr()
        assert executor.runner.batch.send(lines[2:5]).tolist() == lines[2:5].tolist()
