"""Language models without their own builder are captured from transformers, and generate like all others."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tvm import relax, tirx, topi

import compiler
from compiler.errors import InvalidModelError, OptionError, UnsupportedModelError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.captured_cache import with_cache_type
from compiler.frontends.llm.captured_products import with_precision
from compiler.frontends.llm.transformers_decoder import capture_decoder
from compiler.generation.language_model import LanguageModel
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.expert_products import expert_product, padded_experts
from compiler.passes.rewriting.graph import bindings_of, operator_name
from tests.compiler.frontends.llm.families import greedy, save_model
from tests.coverage.tiny_configs import VOCABULARY, tiny_config

transformers = pytest.importorskip("transformers")


class _Folder(NamedTuple):
    reference: Any
    model: ImportedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> _Folder:
    path = tmp_path_factory.mktemp("persimmon")
    reference = save_model("persimmon", path, num_hidden_layers=1, max_position_embeddings=64)
    return _Folder(reference, import_language_model(path))


def test_a_folder_of_another_architecture_generates_what_transformers_does(folder: _Folder) -> None:
    reference = folder.reference
    model = LanguageModel(compiler.compile(folder.model, threads=1))
    assert (model.description.architecture, model.description.context) == ("persimmon", 64)
    prompt = np.random.default_rng(0).integers(1, reference.config.vocab_size, 9)
    _, tokens = greedy(reference, prompt, 8)
    assert list(model.generate(prompt.tolist(), max_new_tokens=8).tokens) == tokens
    # What came before is rewound to where another prompt begins to differ.
    session = model.module.session()
    logits = session.run([prompt[None]])["logits"]
    session.rewind(4)
    np.testing.assert_allclose(session.run([prompt[None, 5:]])["logits"], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_weights_have_the_precision_that_is_asked_for(precision: str, folder: _Folder) -> None:
    exact = LanguageModelOptions(precision, activations="float32")
    model = replace(folder.model, mod=with_precision(folder.model.mod, exact, folder.reference.config.vocab_size))
    prompt = np.random.default_rng(1).integers(1, folder.reference.config.vocab_size, 9)
    reference = copy.deepcopy(folder.reference)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:
                parameter.copy_(_rounded(parameter, precision))
    wanted, _ = greedy(reference, prompt, 1)
    plain, _ = greedy(folder.reference, prompt, 1)
    found = compiler.compile(model, threads=1).session().run([prompt[None]])["logits"][0]
    error = float(abs(found - wanted).max() / abs(wanted).max())
    assert error < 1e-5 < float(abs(plain - wanted).max() / abs(wanted).max())


def test_a_cache_of_bytes_is_read_as_it_is_stored(folder: _Folder) -> None:
    module = compiler.compile(with_cache_type(folder.model, "int8"), threads=1)
    dtypes = {each.name: each.dtype for each in module.inputs if each.name not in ("tokens", "position")}
    assert set(dtypes.values()) == {"int8", "float32"}
    assert all(dtype == "int8" or name.endswith("_scale") for name, dtype in dtypes.items())
    assert "cached_attention" in {each.kernel for each in module.manifest.kernels}
    prompt = np.random.default_rng(2).integers(1, folder.reference.config.vocab_size, 9)
    wanted, _ = greedy(folder.reference, prompt, 1)
    session = module.session()
    session.run([prompt[None, :8]])
    found = session.run([prompt[None, 8:]])["logits"][0]
    assert float(abs(found - wanted).max() / abs(wanted).max()) < 2e-2


def _rounded(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """Round to bfloat16, or to multiples of a float16 scale per 32 elements."""
    if precision == "bfloat16":
        return weight.to(torch.bfloat16).to(torch.float32)
    rows, depth = weight.shape
    groups = torch.zeros(rows, -(-depth // 32) * 32)
    groups[:, :depth] = weight
    groups = groups.reshape(rows, -1, 32)
    scales = (groups.abs().amax(-1, keepdim=True) / 127).to(torch.float16).to(torch.float32)
    return ((groups / scales).round() * scales).nan_to_num().reshape(rows, -1)[:, :depth]


def test_routed_experts_are_rounded() -> None:
    """In captured mixtures: matmuls of rows with the weights of only their own experts."""
    builder, rows = relax.BlockBuilder(), tirx.Var("n", "int64")
    x, places = (
        relax.Var("x", relax.TensorType((rows, 48), "float32")),
        relax.Var("e", relax.TensorType((rows,), "int64")),
    )
    weights = np.random.default_rng(0).standard_normal((3, 40, 48), np.float32)
    stored = BlockWeight.of_floats(padded_experts(weights), "float32")
    with builder.function("main", [x, places]):
        builder.emit_func_output(expert_product(builder, x, stored, 40, places, "float32"))
    mod = with_precision(builder.get(), LanguageModelOptions("bfloat16", activations="float32"), None)
    data, experts = np.random.default_rng(1).standard_normal((7, 48), np.float32), np.array([0, 0, 1, 2, 2, 2, 2])
    rounded = _rounded(torch.from_numpy(weights.reshape(-1, 48)), "bfloat16").numpy().reshape(3, 40, 48)
    [found] = compiler.compile(mod, threads=1).run([data, experts]).values()
    wanted = np.einsum("nk,nmk->nm", data.astype(np.float64), rounded[experts])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_experts_are_rounded_and_routers_are_not() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 32), "float32"))
    values = [np.random.default_rng(n).standard_normal(shape, np.float32) for n, shape in enumerate(_SHAPES)]
    router, experts, square = (relax.const(each) for each in values)
    with builder.function("main", [x]):
        scores = builder.emit(relax.op.nn.softmax(builder.emit(relax.op.matmul(x, router)), axis=-1))
        chosen = builder.emit_te(topi.topk, scores, k=2, ret_type="indices", primfunc_name_hint="top_k")
        hidden = builder.emit(relax.op.matmul(x, experts))
        builder.emit_func_output(relax.Tuple([builder.emit(relax.op.matmul(hidden, square)), chosen]))
    mod = with_precision(builder.get(), LanguageModelOptions("int8"), None)
    calls = [binding.value for binding in bindings_of(mod["main"].body)]
    assert [name for name in map(operator_name, calls) if name == "relax.matmul"] == ["relax.matmul"]
    assert sum("block_matmul" in str(call.args[0]) for call in calls if operator_name(call) == "relax.call_tir") == 6
    rows = np.random.default_rng(3).standard_normal((4, 32), np.float32)
    found, best = compiler.compile(mod, threads=1).run([rows]).values()
    wanted = rows @ values[1] @ values[2]
    assert abs(found - wanted).max() < 0.02 * abs(wanted).max()
    np.testing.assert_array_equal(best, np.argsort(-(rows @ values[0]), 1)[:, :2])


_SHAPES = ((32, 8), (3, 32, 40), (3, 40, 32))


def test_a_folder_is_refused_before_anything_large_is_made(tmp_path: Path) -> None:
    save_model("persimmon", tmp_path, num_hidden_layers=1, max_position_embeddings=64)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000"),
        ({"num_attention_heads": -4}, "'num_attention_heads' is -4"),
        ({"vocab_size": 10**9, "chunk_size": -1}, "parameters, but the files contain"),
        ({"num_hidden_layers": 2}, "lacks the tensor"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InvalidModelError, match=message):
            compiler.compile(tmp_path)


def test_code_that_is_wrong_with_a_static_cache_is_refused(tmp_path: Path) -> None:
    """GPT-Neo's masks mistake the capacity of the cache for the number of tokens."""
    save_model("gpt_neo", tmp_path, max_position_embeddings=64, window_size=9)
    with pytest.raises(UnsupportedModelError, match="different logits with a static cache"):
        capture_decoder(tmp_path, LanguageModelOptions())


@pytest.mark.parametrize("kind", ["biogpt", "deepseek_v32", "doge"])
def test_a_second_run_gives_the_logits_of_all_tokens_at_once(kind: str, tmp_path: Path) -> None:
    """BioGPT derives a mask from the filled rows. The others attend to 16 keys of 24, for distinct tokens: DeepSeek's
    indexer has a separate cache, and Doge chooses by the values, which are equal in the first layer for equal tokens,
    so a choice between these is arbitrary."""
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference.save_pretrained(tmp_path)
    module = compiler.compile(tmp_path, threads=1)
    prompt = np.random.default_rng(0).permutation(VOCABULARY)[:24]
    session = module.session()
    session.run([prompt[None, :20]])
    with torch.no_grad():
        wanted = reference(input_ids=torch.from_numpy(prompt)[None], use_cache=False).logits[0, -1].numpy()
    logits = session.run([prompt[None, 20:]])["logits"][0, 0]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_options_that_do_not_apply_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "persimmon", "architectures": ["PersimmonForCausalLM"]}')
    with pytest.raises(OptionError, match="do not apply"):
        compiler.compile(tmp_path, sequences=True)
