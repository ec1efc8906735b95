"""GGUF files of Llama and related models give llama.cpp's configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tvm_ffi

import compiler
from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.families import ARCHITECTURES
from compiler.frontends.llm.gguf_config import read_gguf
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.hugging_face import read_hugging_face
from compiler.frontends.llm.parameters import Parameters
from tests.compiler.frontends.llm.families import greedy, save_model
from tests.compiler.frontends.llm.gpt_gguf import NAMES
from tests.compiler.frontends.llm.gpt_oss_gguf import write_gpt_oss_gguf
from tests.compiler.frontends.llm.llama_gguf import ARCHITECTURES as LLAMA
from tests.compiler.frontends.llm.llama_gguf import write_llama_gguf
from tests.compiler.frontends.llm.recurrent_gguf import ARCHITECTURES as RECURRENT
from tests.compiler.frontends.llm.test_gguf_graphs import GRAPHS

_GPT = {"norm": "layer", "gated": False}
_GEMMA = {"activation": "gelu_tanh", "embedding_scale": 8**0.5}
_MIXTURE = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 6}
# What files of a type cannot say otherwise
CHANGES: dict[str, dict[str, Any]] = {
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "bitnet": {"hidden_act": "silu", "tie_word_embeddings": True},
    "granite_swa": {"attention_multiplier": 0.125},
    "glm4_moe": {"attention_bias": False, "n_group": 3, "topk_group": 2},
}
# architecture -> metadata, and what differs from Llama
KINDS: dict[str, tuple[Mapping[str, float], dict[str, Any]]] = {
    **{name: ({}, {}) for name in ("internlm2", "xverse", "chatglm", "exaone", "pangu-embedded")},
    **{name: ({}, {}) for name in ("llama", "qwen2", "qwen3", "phi3")},
    **{name: ({}, {}) for name in ("qwen2vl", "qwen3vl", "paddleocr", "hunyuan_vl")},  # their texts
    **{
        name: (_MIXTURE, {})
        for name in (
            "deepseek",
            "deepseek2-ocr",
            "bailingmoe",
            "qwen2moe",
            "qwen3moe",
            "qwen3vlmoe",
            "olmoe",
            "granitemoe",
            "phimoe",
        )
    },
    "granite": (
        {"logit_scale": 4.0, "residual_scale": 0.5, "embedding_scale": 3.0, "attention.scale": 0.125},
        {"logit_scale": 0.25, "residual_scale": 0.5, "embedding_scale": 3.0, "score_scale": 0.125},
    ),
    "smollm3": ({}, {"ropes": [1, 1, 1, 0]}),
    "gemma": ({}, _GEMMA),
    "gemma2": ({"attention.sliding_window": 8}, {**_GEMMA, "windows": [8, None, 8, None]}),
    "gemma3": (
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": 2},
        {**_GEMMA, "windows": [8, None, 8, None]},
    ),
    "gpt-oss": ({**_MIXTURE, "attention.sliding_window": 8}, {"windows": [8, None, 8, None]}),
    "llama4": ({**_MIXTURE, "attention.chunk_size": 8}, {"ropes": [1, 1, 1, 0], "chunks": [8, 8, 8, None]}),
    "baichuan": ({}, {"slopes": (0.0625, 0.00390625)}),  # as all but the one of 32 layers
    "command-r": ({"logit_scale": 0.25}, {"norm": "layer", "parallel": True, "logit_scale": 0.25}),
    "cohere2": (
        {"logit_scale": 0.5, "attention.sliding_window": 8},
        {"norm": "layer", "parallel": True, "logit_scale": 0.5, "windows": [8, 8, 8, None], "ropes": [1, 1, 1, 0]},
    ),
    "exaone4": ({"attention.sliding_window": 8}, {"windows": [8, 8, 8, None], "ropes": [1, 1, 1, 0]}),
    "minicpm": (
        {"logit_scale": 4.0, "residual_scale": 0.5, "embedding_scale": 3.0},
        {"logit_scale": 0.25, "residual_scale": 0.5, "embedding_scale": 3.0},
    ),
    "olmo": ({"attention.clamp_kqv": 0.5}, {"norm": "layer", "clip": 0.5}),
    "qwen": ({}, {"intermediate": 6}),
    "refact": ({}, {"slopes": (0.0625, 0.00390625)}),
    "codeshell": ({}, {**_GPT, "activation": "gelu_tanh"}),
    "orion": ({}, {"norm": "layer"}),
    "jais": ({}, {"norm": "layer", "score_scale": 0.25, "slopes": (0.0625, 0.00390625)}),
}


def _written(
    path: Path,
    architecture: str,
    metadata: Mapping[str, float],
    arrays: Mapping[str, list[float]] | None = None,
    layers: int = 4,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    for key, value in metadata.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    for key, values in (arrays or {}).items():
        writer.add_array(key, values)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", KINDS)
def test_a_file_is_read_as_llama_cpp_computes_it(architecture: str, tmp_path: Path) -> None:
    metadata, expected = KINDS[architecture]
    config, _, storage, _ = read_gguf(GgufFile(_written(tmp_path / "model.gguf", architecture, metadata)))
    scales = {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "score_scale": 0.5}
    plain = {"norm": "rms", "gated": True, "activation": "silu", "parallel": False, "intermediate": 12, **scales}
    plain |= {"clip": None, "slopes": None}
    ropes = [0] * 4 if "slopes" in expected else [1] * 4
    wanted = {**plain, "windows": [None] * 4, "chunks": [None] * 4, "ropes": ropes, **expected}
    found = {name: getattr(config, name) for name in plain}
    found["windows"] = [layer.window for layer in config.layers]
    found["chunks"] = [layer.chunk for layer in config.layers]
    found["ropes"] = [int(layer.rope is not None) for layer in config.layers]
    assert found == wanted
    assert storage.bare_norms == (architecture == "olmo")


def test_a_file_of_apertus_holds_what_the_folder_does(tmp_path: Path) -> None:
    """Parameters of xIELU are metadata in files and tensors in folders."""
    model = save_model("apertus", tmp_path)
    config, folder_names, storage, checkpoint, _ = read_hugging_face(tmp_path, LanguageModelOptions())
    tensors = Parameters(checkpoint, folder_names, config, storage)
    wanted = [tensors.xielu(index) for index in range(2)]
    state = {name: values.float().reshape(-1).tolist() for name, values in model.state_dict().items()}
    numbers = {
        f"xielu.{end}": [state[f"model.layers.{index}.mlp.act_fn.{end}"][0] for index in range(2)]
        for end in ("alpha_p", "alpha_n", "beta", "eps")
    }
    path = _written(tmp_path / "model.gguf", "apertus", {}, numbers, layers=2)
    found, names, _, _ = read_gguf(GgufFile(path))
    assert [layer.xielu for layer in found.layers] == wanted
    assert wanted[0] != wanted[1]
    assert (found.gated, found.activation, config.gated, config.activation) == (False, "xielu") * 2
    assert {names.of(0, "q_norm"), names.of(0, "mlp_norm")} == {"blk.0.attn_q_norm", "blk.0.ffn_norm"}
    with pytest.raises(InvalidModelError, match=r"xielu\.alpha_n"):
        read_gguf(GgufFile(_written(tmp_path / "other.gguf", "apertus", {}, {**numbers, "xielu.alpha_n": [0.5]}, 2)))


def test_every_architecture_is_tested() -> None:
    recurrent = {each for each, _, _ in RECURRENT.values()}
    others = {"apertus", "arwkv7", "rwkv7", *GRAPHS, *KINDS, *NAMES, *LLAMA.values()}
    assert set(ARCHITECTURES) == others | recurrent


_NUMBERS = ("dbrx", "minicpm3")


@pytest.mark.parametrize("name", [each for each in LLAMA if each not in _NUMBERS])
def test_a_file_and_its_folder_become_one_module(name: str, tmp_path: Path) -> None:
    """`tests.coverage language` compares the folder's module with transformers. Epsilons are exact in float32."""
    save_model(
        name, tmp_path, **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_eps"), 2**-16), **CHANGES.get(name, {})
    )
    file = write_llama_gguf(tmp_path / "model.gguf", tmp_path)
    modules = [import_language_model(each).mod for each in (tmp_path, file)]
    assert tvm_ffi.structural_equal(*modules), tvm_ffi.get_first_structural_mismatch(*modules)


@pytest.mark.parametrize("name", _NUMBERS)
def test_logits_of_a_file_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """DBRX folders are not supported; for MiniCPM 3, llama.cpp has one epsilon and constant factors."""
    changes = {"rms_norm_eps": 1e-6, "dim_model_base": 256}
    model = save_model(name, tmp_path, **(changes if name == "minicpm3" else {}))
    module = compiler.compile(write_llama_gguf(tmp_path / "model.gguf", tmp_path), threads=1)
    prompt = np.random.default_rng(0).integers(1, model.config.vocab_size, 23)
    [wanted], _ = greedy(model, prompt, 1)
    logits = module.session(capacity=40).run([prompt[None]])["logits"][0, 0]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_a_file_of_gpt_oss_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    import torch

    scaling = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
    # As llama.cpp computes: frequencies of YaRN are cut at whole numbers, and experts clamped at 7.
    rope = {**scaling, "truncate": True}
    model = save_model("gpt_oss", tmp_path, swiglu_limit=7.0, rope_parameters=rope)
    stored = write_gpt_oss_gguf(tmp_path / "model.gguf", tmp_path, model.config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in stored.items():
            parameters[name].copy_(torch.from_numpy(values))
    prompt = np.random.default_rng(0).integers(1, model.config.vocab_size, 23)
    wanted, tokens = greedy(model, prompt, 4)
    options = LanguageModelOptions(activations="float32", cache="float32")
    session = compiler.compile(import_language_model(tmp_path / "model.gguf", options), threads=1).session(capacity=40)
    for row, step in zip(wanted, [prompt, *([each] for each in tokens[:-1])], strict=True):
        logits = session.run([np.array(step)[None]])["logits"][0, 0]
        np.testing.assert_allclose(logits, row, rtol=0, atol=1e-5 * abs(row).max())


def test_files_without_the_factors_of_minicpm_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="without the metadata embedding_scale, residual_scale, logit_scale"):
        read_gguf(GgufFile(_written(tmp_path / "model.gguf", "minicpm", {})))
