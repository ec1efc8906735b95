"""Decoders built in Relax give the logits and the greedy tokens of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.errors import InputError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.families import FAMILIES as SUPPORTED
from tests.compiler.frontends.llm.families import FAMILIES, greedy, save_model

pytest.importorskip("transformers")

# Together these have each option; `python -m tests.coverage language` runs all of them at longer prompts.
_TESTED = (
    "llama",
    "phi3",
    "gemma3",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_text-mixture",
    "olmo2",
    "qwen2_moe",
    "gpt2",
    "gptj",
    "bloom",
    "apertus",
    "gpt_oss",
    "afmoe",
    "hunyuan_v1_dense",
    "bitnet",
    "ministral3",
    "granite_swa",
    "gpt_neo",
    "deepseek_v3",
    "llama4_text",
    "kimi_linear",
    "recurrent_gemma",
    "olmo_hybrid",
    "cohere2_moe",
    "laguna",
    "minimax",
)
_HYBRID = ("lfm2", "lfm3", "granitemoehybrid", "falcon_h1", "jamba", "nemotron_h", "nemotron_h-mixture", "qwen3_next")
_STEPS = 12


@pytest.mark.parametrize("name", [*_TESTED, *_HYBRID])
def test_logits_and_greedy_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = save_model(name, tmp_path)
    module = compiler.compile(import_language_model(tmp_path), threads=1)
    for length in (1, 23):
        prompt = np.random.default_rng(length).integers(1, reference.config.vocab_size, length)
        wanted, tokens = greedy(reference, prompt, _STEPS)
        session = module.session(capacity=40)
        step = prompt
        for row, token in zip(wanted, tokens, strict=True):
            logits = session.run([step[None]])["logits"]
            np.testing.assert_allclose(logits[0, 0], row, rtol=0, atol=1e-5 * abs(row).max())
            assert int(logits.argmax()) == token
            step = np.array([token])


def test_all_logits_are_returned_on_request(tmp_path: Path) -> None:
    import torch

    reference = save_model("qwen3", tmp_path, num_hidden_layers=1)
    module = compiler.compile(import_language_model(tmp_path, LanguageModelOptions(all_logits=True)), threads=1)
    prompt = np.random.default_rng(0).integers(1, reference.config.vocab_size, (1, 6))
    with torch.no_grad():
        wanted = reference(torch.from_numpy(prompt)).logits.numpy()
    found = module.session(capacity=6).run([prompt])["logits"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_a_cache_of_bytes_gives_nearly_the_same_logits(tmp_path: Path) -> None:
    reference = save_model("llama", tmp_path, num_hidden_layers=2)
    options = LanguageModelOptions(cache="int8")
    model = import_language_model(tmp_path, options)
    assert [each.dtype for each in model.inputs[2:6]] == ["int8", "int8", "float32", "float32"]
    session = compiler.compile(model, threads=1).session(capacity=40)
    prompt = np.random.default_rng(3).integers(1, reference.config.vocab_size, 20)
    wanted, tokens = greedy(reference, prompt, 4)
    for row, step in zip(wanted, [prompt, *([each] for each in tokens[:-1])], strict=True):
        logits = session.run([np.array(step)[None]])["logits"][0, 0]
        # Half a step of 127 in keys and values; products round nothing else.
        np.testing.assert_allclose(logits, row, rtol=0, atol=0.02 * abs(row).max())


def test_a_cache_is_no_longer_than_the_table_of_learned_positions(tmp_path: Path) -> None:
    save_model("gpt2", tmp_path, n_layer=1, n_positions=20, max_position_embeddings=20)
    module = compiler.compile(import_language_model(tmp_path), threads=1)
    module.session(capacity=20).run([np.ones((1, 20), np.int64)])
    with pytest.raises(InputError, match="learned positions"):
        module.session(capacity=21).run([np.ones((1, 3), np.int64)])


def test_the_families_are_those_that_are_supported() -> None:
    names = {name.partition("-")[0] for name in FAMILIES}
    others = {"ministral", "kimi_k2", "rwkv7"}  # the last is not in transformers: see test_rwkv.py
    assert {"gemma3" if name == "gemma3_text" else name for name in SUPPORTED} - others == names


def test_layers_that_read_the_keys_of_another_keep_nothing(tmp_path: Path) -> None:
    shared = {"num_hidden_layers": 2, "layer_types": 2 * ["full_attention"], "num_kv_shared_layers": 1}
    save_model("gemma4_text", tmp_path, max_position_embeddings=64, **shared)
    states = import_language_model(tmp_path).states
    assert len(states) == 2  # of the first layer
    assert all(state.axis == 2 for state in states)


def test_heads_are_tied_by_default_where_transformers_ties_them() -> None:
    from transformers import CONFIG_MAPPING

    ours = {kind: bool(family.defaults.get("tie_word_embeddings")) for kind, family in SUPPORTED.items()}
    theirs = {kind: bool(CONFIG_MAPPING[kind]().tie_word_embeddings) for kind in ours if kind in CONFIG_MAPPING}
    assert {kind: ours[kind] for kind in theirs} == theirs


def test_a_model_without_states(tmp_path: Path) -> None:
    import torch

    model = save_model("nemotron_h", tmp_path, layers_block_type=["mlp", "mlp"], num_hidden_layers=2)
    prompt = np.arange(5, 12)
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(prompt[None]), use_cache=False).logits[0, -1].numpy()
    [logits] = compiler.compile(tmp_path, threads=1).run([prompt[None]]).values()
    np.testing.assert_allclose(logits[0, -1], wanted, rtol=0, atol=1e-5 * abs(wanted).max())
