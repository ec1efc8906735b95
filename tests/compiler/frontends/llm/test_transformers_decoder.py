"""Language models that are not built here are captured from transformers, and generate like all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.errors import OptionError
from compiler.generation.language_model import LanguageModel
from tests.compiler.frontends.llm.families import greedy, save_model

pytest.importorskip("transformers")


def test_a_folder_of_another_architecture_generates_what_transformers_does(tmp_path: Path) -> None:
    reference = save_model("nemotron", tmp_path, num_hidden_layers=1, max_position_embeddings=64)
    model = LanguageModel(compiler.compile(tmp_path, threads=1))
    assert (model.description.architecture, model.description.context) == ("nemotron", 64)
    prompt = np.random.default_rng(0).integers(1, reference.config.vocab_size, 9)
    _, tokens = greedy(reference, prompt, 8)
    assert list(model.generate(prompt.tolist(), max_new_tokens=8).tokens) == tokens
    # What came before is rewound to where another prompt begins to differ.
    session = model.module.session()
    logits = session.run([prompt[None]])["logits"]
    session.rewind(4)
    np.testing.assert_allclose(session.run([prompt[None, 5:]])["logits"], logits, rtol=1e-5, atol=1e-6)


def test_integer_precisions_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nemotron", "architectures": ["NemotronForCausalLM"]}')
    with pytest.raises(OptionError, match="precision 'int4' is not supported"):
        compiler.compile(tmp_path, precision="int4")
