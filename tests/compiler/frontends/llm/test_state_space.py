"""Mamba and Mamba-2 give the logits and the greedy tokens of transformers, through sessions and `generate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.errors import OptionError
from compiler.generation.language_model import LanguageModel
from tests.compiler.frontends.llm.families import greedy, save_model
from tests.compiler.frontends.llm.recurrent_gguf import write_recurrent_gguf

pytest.importorskip("transformers")
_STEPS = 8


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_logits_and_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = save_model(name, tmp_path, num_hidden_layers=1)
    model = LanguageModel(compiler.compile(tmp_path, threads=1))
    for length in (1, 2, 19):  # the convolution reaches back by three rows
        prompt = np.random.default_rng(length).integers(1, reference.config.vocab_size, length)
        wanted, tokens = greedy(reference, prompt, _STEPS)
        session = model.module.session()
        step = prompt
        for row, token in zip(wanted, tokens, strict=True):
            logits = session.run([step[None]])["logits"]
            np.testing.assert_allclose(logits[0, 0], row, rtol=0, atol=1e-5 * abs(row).max())
            step = np.array([token])
        assert list(model.generate(prompt.tolist(), max_new_tokens=_STEPS).tokens) == tokens
        with pytest.raises(OptionError, match="cannot be rewound"):
            session.rewind(1)
    # The same numbers in a GGUF file give the same logits.
    stored = write_recurrent_gguf(tmp_path / "model.gguf", tmp_path)
    again = compiler.compile(stored, threads=1).session().run([prompt[None]])["logits"]
    np.testing.assert_allclose(again[0, 0], wanted[0], rtol=0, atol=1e-5 * abs(wanted[0]).max())
