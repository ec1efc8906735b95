"""Calibration of language models: operands of matmuls, and refused models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.driver.build import operand_grams
from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from tests.compiler.frontends.llm.families import save_model

pytest.importorskip("transformers")


def test_operands_are_those_of_the_layers_products(tmp_path: Path) -> None:
    import torch

    reference = save_model("llama", tmp_path, num_hidden_layers=1)
    module = compiler.compile(import_language_model(tmp_path, LanguageModelOptions(captures=True)), threads=1)
    tokens = np.random.default_rng(0).integers(1, reference.config.vocab_size, (2, 9))
    seen: list[Any] = []
    layer = reference.model.layers[0]
    for linear in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
        linear.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].double().flatten(0, 1)))
    with torch.no_grad():
        reference(torch.from_numpy(tokens))
    grams = operand_grams(module, tokens)
    assert len(grams) == len(seen)
    for found, rows in zip(grams, seen, strict=True):
        wanted = (rows.T @ rows).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_what_calibration_cannot_serve_is_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path, num_hidden_layers=1)
    text = tmp_path / "text.txt"
    text.write_text("A text.")
    with pytest.raises(OptionError, match="int4"):
        compiler.compile(tmp_path, precision="int8", calibration=text)
    with pytest.raises(InvalidModelError, match="tokenizer"):
        compiler.compile(tmp_path, precision="int4", calibration=text)
    with pytest.raises(OptionError, match="language models"):
        compiler.compile(tmp_path / "model.onnx", cache="int8")
