"""Quantized folders: every package's layout, with unchanged values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import compiler
from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.blocks import dequantized
from compiler.frontends.llm.quantized.folder import open_folder
from tests.compiler.frontends.llm.families import greedy, save_model
from tests.compiler.frontends.llm.quantized_folders import kinds, torch_tensor, write_quantized

pytest.importorskip("transformers")

EXACT = LanguageModelOptions(activations="float32", cache="float32")
KINDS = kinds()
# One of each layout in the module: integers with and without zeros, in act-order, tables, floats.
_COMPILED = (
    "gptq",
    "gptq-act-order",
    "gptq-3-bits",
    "awq",
    "compressed-8-bits-asymmetric",
    "compressed-nvfp4",
    "compressed-float8-channel",
    "nf4-nested",
    "nf4-across-rows",
    "llm-int8",
    "fp8-uneven",
    "fp8-e5m2",
)


def _largest_error(folder: Path, model: Any, options: LanguageModelOptions = EXACT) -> float:
    """Return the error of the logits after a prompt and after one more token, over the largest logit."""
    session = compiler.compile(import_language_model(folder, options), threads=1).session(capacity=32)
    prompt = np.random.default_rng(1).integers(1, model.config.vocab_size, 9)
    wanted, tokens = greedy(model, prompt, 2)
    found = [session.run([step[None]])["logits"][0, 0] for step in (prompt, np.array(tokens[:1]))]
    return float(max(abs(row - right).max() / abs(right).max() for row, right in zip(found, wanted, strict=True)))


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_packages_formulas(name: str, tmp_path: Path) -> None:
    model = write_quantized(KINDS[name], tmp_path)
    reader = open_folder(tmp_path)
    wanted = {each: value.detach().numpy() for each, value in model.named_parameters()}
    assert reader.names == wanted.keys()
    quantized = 0
    for each, values in wanted.items():
        assert reader.shape(each) == values.shape
        if values.ndim > 1:
            matrix = reader.matrix(each)
            quantized += matrix.groups is not None
            np.testing.assert_allclose(dequantized(matrix), values, rtol=3e-7, atol=1e-9)
    assert quantized == 7


@pytest.mark.parametrize("name", _COMPILED)
def test_logits_are_those_of_transformers_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    assert _largest_error(tmp_path, write_quantized(KINDS[name], tmp_path)) < 1e-5


def test_experts_of_a_mixture_may_each_have_an_order_of_their_own(tmp_path: Path) -> None:
    changes = {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 64}
    model = write_quantized(KINDS["gptq-act-order"], tmp_path, "mixtral", **changes)
    assert _largest_error(tmp_path, model) < 1e-5


def test_quantized_weights_are_quantized_again_on_request(tmp_path: Path) -> None:
    model = write_quantized(KINDS["fp8"], tmp_path)
    errors = [_largest_error(tmp_path, model, LanguageModelOptions(each, "float32")) for each in ("float32", "int8")]
    assert errors[0] < 1e-5 < errors[1] < 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "aqlm"}, "quantized by 'aqlm' are not supported"),
        ({"bits": 4}, "quantized by 'None'"),
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, "weights of 5 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"x": {}}}, "single modules"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "'gemv'"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:llm_compressor"}, "'llm_compressor'"),
        (
            {
                "quant_method": "auto-round",
                "bits": 4,
                "packing_format": "auto_round:auto_gptq",
                "extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}},
            },
            "single modules",
        ),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "'W4A8_AWQ'"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "'marlin-24'"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}, "sparse weights"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"x": 1}}}, "transforms"),
    ],
)
def test_methods_that_are_not_supported_are_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_quantized(KINDS["gptq"], tmp_path)
    _rewrite_config(tmp_path, config)
    with pytest.raises(OptionError, match=message):
        import_language_model(tmp_path)


def _rewrite_config(folder: Path, config: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))


_QUERY = "model.layers.0.self_attn.q_proj"
_DAMAGE: dict[str, tuple[str, str, Any]] = {
    "a missing scale": ("gptq", ".scales", None),
    "a missing zero": ("gptq", ".qzeros", None),
    "too few groups": ("gptq", ".scales", lambda array: array[:-1]),
    "scales of another type": ("gptq", ".scales", lambda array: array.astype(np.int32)),
    "a scale that is not finite": ("gptq", ".scales", lambda array: array * np.float16(np.nan)),
    "weights of another type": ("gptq", ".qweight", lambda array: array.astype(np.int64)),
    "weights of one axis": ("gptq", ".qweight", lambda array: array.reshape(-1)),
    "a group out of range": ("gptq-act-order", ".g_idx", lambda array: array + 7),
    "a negative group": ("gptq-act-order", ".g_idx", lambda array: -array),
    "groups of other sizes": ("gptq-act-order", ".g_idx", lambda array: np.minimum(array, 0)),
    "zeros of another shape": ("awq", ".qzeros", lambda array: array[:, :-1]),
    "scales of no known group": ("compressed-4-bits", ".weight_scale", lambda array: np.ones((64, 3), np.float32)),
    "a depth that does not fit": ("compressed-4-bits", ".weight_shape", lambda array: np.array([64, 4000])),
    "blocks of another shape": ("fp8", ".weight_scale_inv", lambda array: np.ones((3, 3), np.float32)),
    "a float that is not finite": ("fbgemm", ".weight", lambda array: np.full_like(array, np.nan)),
    "a state that is no JSON": ("nf4", ".weight.quant_state.bitsandbytes__nf4", lambda array: array[:-1]),
    "too few numbers of 4 bits": ("nf4", ".weight", lambda array: array[:-1]),
    "too few scales": ("nf4-nested", ".weight.nested_absmax", lambda array: array[:0]),
    "a short table": ("nf4", ".weight.quant_map", lambda array: array[:8]),
    "scales of other rows": ("llm-int8", ".SCB", lambda array: array[:-1]),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_damaged_tensors_are_named(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name, end, change = _DAMAGE[damage]
    write_quantized(KINDS[name], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damaged = tensors.pop(_QUERY + end)
    if change is not None:
        tensors[_QUERY + end] = torch_tensor(np.ascontiguousarray(change(_numpy(damaged))))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModelError, match=re.escape(_QUERY)):
        import_language_model(tmp_path)


def _numpy(tensor: Any) -> np.ndarray[Any, Any]:
    import torch

    found: np.ndarray[Any, Any]
    if tensor.dtype == torch.float8_e4m3fn:
        found = tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    else:
        found = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def test_blocks_of_mxfp4_are_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random, name = np.random.default_rng(7), "model.layers.0.mlp.experts.gate_up_proj"
    blocks = torch.from_numpy(random.integers(0, 256, (2, 6, 3, 16)).astype(np.uint8))
    scales = torch.from_numpy(random.integers(100, 140, (2, 6, 3)).astype(np.uint8))
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "mxfp4"}}))
    reader = open_folder(tmp_path)
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)  # which turns them
    assert reader.names == {f"{name}.weight"}
    assert reader.shape(f"{name}.weight") == (2, 6, 96)
    np.testing.assert_array_equal(reader.vector(f"{name}.weight"), wanted.numpy())


@pytest.mark.parametrize("method", ["mxfp4", None])
def test_folders_of_gpt_oss_give_the_logits_of_transformers(method: str | None, tmp_path: Path) -> None:
    """As published, in MXFP4 or dequantized to bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = save_model("gpt_oss", tmp_path, num_hidden_layers=1)
    parameters, random = dict(model.named_parameters()), np.random.default_rng(5)
    tensors = {name: each.to(torch.bfloat16) for name, each in load_file(tmp_path / "model.safetensors").items()}
    with torch.no_grad():
        for name, each in tensors.items():
            parameters[name].copy_(each)
    for name in [each for each in tensors if method and each.endswith(("gate_up_proj", "down_proj"))]:
        experts, depth, rows = tensors.pop(name).shape
        blocks = torch.from_numpy(random.integers(0, 256, (experts, rows, depth // 32, 16)).astype(np.uint8))
        scales = torch.from_numpy(random.integers(122, 126, (experts, rows, depth // 32)).astype(np.uint8))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        with torch.no_grad():
            parameters[name].copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    save_file(tensors, tmp_path / "model.safetensors")
    if method:
        _rewrite_config(tmp_path, {"quant_method": method})
    assert _largest_error(tmp_path, model) < 1e-5
