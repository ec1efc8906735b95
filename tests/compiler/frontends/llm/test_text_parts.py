"""Folders of models that also read images: their text decoder is built as a model of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.frontends.llm import import_language_model
from compiler.frontends.llm.tokenizer_files import read_tokenizer_files
from tests.coverage.tiny_configs import tiny_config

pytest.importorskip("transformers")
_NAMES = ("mistral3", "gemma4", "qwen3_5", "lfm2_vl", "llava_next", "aya_vision", "kimi_k25", "nemotron_h_omni")


def _save(name: str, folder: Path) -> Any:
    """Write a small random model, and return it."""
    import torch
    import transformers

    torch.manual_seed(len(name))
    model = transformers.AutoModelForMultimodalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", _NAMES)
def test_logits_of_text_equal_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    import torch

    reference = _save(name, tmp_path)
    imported = import_language_model(tmp_path)
    assert "without images and audio" in imported.notes[0]
    prompt = np.random.default_rng(1).integers(5, 100, (1, 30))
    with torch.no_grad():
        wanted = reference(input_ids=torch.from_numpy(prompt)).logits[0, -1].numpy()
    wanted = wanted * getattr(reference.config.text_config, "logit_scale", 1.0)  # transformers leaves Cohere's out here
    session = compiler.compile(imported, threads=1).session(capacity=32)
    found = session.run([prompt])["logits"][0, -1]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_templates_have_a_file_of_their_own_or_are_settings(file: str, tmp_path: Path) -> None:
    text = "{{ messages }}"
    (tmp_path / file).write_text(text if file.endswith("jinja") else json.dumps({"chat_template": text}))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [7, 9]}}))
    found = read_tokenizer_files(tmp_path)
    assert (found.chat_template, found.stop_tokens) == (text, (7, 9))
