"""Prompts of language models with tile instructions, on a simulated processor, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compiler
import targets
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from tests.compiler.frontends.llm.families import save_model

TILES = "sapphire-rapids-simulated"
_SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 1}


@pytest.mark.parametrize(("family", "precision"), [("llama", "bfloat16"), ("llama", "int8"), ("mixtral", "int8")])
@pytest.mark.skipif(not targets.get(TILES).fits_this_machine(), reason="this machine has no AVX2")
def test_a_prompt_and_one_behind_it(family: str, precision: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    changes = {"sliding_window": None} if family == "mixtral" else {}
    reference = save_model(family, tmp_path, **_SIZES, **changes, max_position_embeddings=256)
    model = import_language_model(tmp_path, LanguageModelOptions(precision, all_logits=True))
    session = compiler.compile(model, target=TILES, threads=2).session(capacity=160)
    tokens = np.random.default_rng(0).integers(1, reference.config.vocab_size, 147)
    found = np.concatenate([session.run([part[None]])["logits"][0] for part in (tokens[:90], tokens[90:])])
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    # Weights and operands have 8 bits; of a mixture, a row may get another expert where two are nearly as good.
    errors = np.sqrt(np.mean((found - wanted) ** 2, 1) / np.mean(wanted**2))
    assert found.shape == wanted.shape
    assert np.median(errors) < (0.01 if precision == "bfloat16" else 0.03)
    assert np.mean(errors > 0.05) < 0.02
