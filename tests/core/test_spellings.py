"""Options as keywords, under vLLM's names; and overrides of rotary scaling, which vLLM spells as options."""

from __future__ import annotations

import json

import pytest

from core import AsyncEngineArgs, EngineConfig
from core.errors import ConfigError
from core.executor.model_config import read_model_config
from core.layers.rotary import rope_parameters


def test_names_of_vllm_become_ours():
    with pytest.warns(UserWarning, match="swap_space=4 has no effect: preempted requests are computed again"):
        args = AsyncEngineArgs(
            model="m", tensor_parallel_size=1, dtype="half", max_seq_len=64, num_gpu_blocks_override=7, swap_space=4,
            disable_log_stats=False, cpu_offload_gb=0, enable_lora=False, quantization=None, speculative_config=None,
            guided_decoding_backend="guidance", rope_scaling={"rope_type": "linear", "factor": 2.0},
        )  # fmt: skip
    config = args.config
    assert (config.model.dtype, config.model.max_model_len, config.cache.num_blocks) == ("float16", 64, 7)
    assert config.plugins.guided_backend == "llguidance" and config.plugins.quantization == "auto"
    assert config.model.hf_overrides == {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert EngineConfig.from_options(**config.options()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 4}, "tensor_parallel_size=4: only 1 is possible"),
        ({"enable_lora": True}, "enable_lora=True: LoRA adapters are not there yet"),
        ({"speculative_config": {"model": "x"}}, "speculative decoding is not there yet"),
        ({"max_seq_len": 3, "max_model_len": 4}, "the same option"),
        ({"max_model_lne": 3}, "did you mean 'max_model_len'"),
    ],
)
def test_what_is_not_there_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_options(**options)


STORED = {
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 100,
}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_overrides_of_rotary_scaling_win_over_either_spelling_of_the_file(tmp_path, spelling):
    stored = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}
    theta = {"rope_theta": stored.pop("rope_theta")} if spelling == "rope_scaling" else {}
    (tmp_path / "config.json").write_text(json.dumps({**STORED, **theta, spelling: stored}))

    config = read_model_config(tmp_path, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    assert rope_parameters(config) == {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "original_max_position_embeddings": 100,
    }  # fmt: skip
    assert config["max_position_embeddings"] == 400

    config = read_model_config(tmp_path, {"rope_theta": 7.0})
    if spelling == "rope_parameters":
        assert rope_parameters(config) == {"rope_type": "llama3", "factor": 8.0, "rope_theta": 7.0}
    assert rope_parameters(config)["rope_theta"] == 7.0 and config["max_position_embeddings"] == 100
    assert rope_parameters(read_model_config(tmp_path, {}))["rope_theta"] == 5e5
