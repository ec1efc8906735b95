"""GGUF files of models with recurrent mixers give transformers' logits for the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from tests.compiler.frontends.llm.families import YARN, greedy, save_model
from tests.compiler.frontends.llm.recurrent_gguf import write_recurrent_gguf

pytest.importorskip("transformers")
_STEPS = 4
# llama.cpp has one epsilon, one size for keys and values of the delta rule, and no factor of the experts of LFM2
CHANGES: dict[str, dict[str, Any]] = {
    "falcon_mamba": {"mixer_rms_eps": 1e-5},
    # llama.cpp has one factor of YaRN for all
    "deepseek_v3": {"q_lora_rank": 36, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "lfm2_moe": {"routed_scaling_factor": 1.0},
    # llama.cpp has one number of heads
    "kimi_linear": {"linear_num_heads": 4},
    # the table of its files is as long as the vocabulary
    "gemma3n_text": {"vocab_size_per_layer_input": 160},
    **{name: {"linear_value_head_dim": 12} for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
}
KINDS = (
    "deepseek_v2",
    "deepseek_v3",
    "mistral4",
    "glm4_moe",
    "kimi_linear",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_text-mixture",
    "falcon_mamba",
    "lfm2",
    "lfm2_moe",
    "granitemoehybrid",
    "granitemoehybrid-dense",
    "falcon_h1",
    "jamba",
    "nemotron_h",
    "nemotron_h-mixture",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
)


@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = save_model(name, tmp_path, **CHANGES.get(name, {}))
    module = compiler.compile(write_recurrent_gguf(tmp_path / "model.gguf", tmp_path), threads=1)
    prompt = np.random.default_rng(7).integers(1, reference.config.vocab_size, 9)
    wanted, tokens = greedy(reference, prompt, _STEPS)
    session = module.session(capacity=20 if module.manifest.position else None)
    step = prompt
    for row, token in zip(wanted, tokens, strict=True):
        logits = session.run([step[None]])["logits"]
        np.testing.assert_allclose(logits[0, 0], row, rtol=0, atol=1e-5 * abs(row).max())
        step = np.array([token])
