"""Small models with layers quantized in the formats of the packages, and their dequantized weights.

Each writer draws the integers and scales of a weight (rows, depth), packs them according to the package's
documentation, and computes the weight from them by its formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.compiler.frontends.llm.families import save_model

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Written = tuple[Tensors, Array]  # tensors by the ends of their names, and the weight
Writer = Callable[[np.random.Generator, int, int], Written]
_SPREAD = 0.1  # of weights
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Kind:
    """A quantization format: its settings in config.json, and the writer of a weight."""

    config: dict[str, Any]
    write: Writer


def bits_of(values: Array, bits: int) -> Array:
    """Integers (n, count) as a stream of bits in words, the lowest first: int32 (n, words)."""
    stream = ((values[..., None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(len(values), -1)
    return np.packbits(stream, axis=1, bitorder="little").view(np.int32)


def gptq(bits: int, group: int, *, symmetric: bool, act_order: bool, version: int = 1) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        size = depth if group == -1 else group
        groups = -(-depth // size)
        most = (1 << bits) - 1
        integers = random.integers(0, most + 1, (rows, depth))
        # Version 1 stores a zero less 1.
        zeros = np.full((rows, groups), (most + 1) // 2) if symmetric else random.integers(1, most + 1, (rows, groups))
        scales = _scales(random, (rows, groups), most).astype(np.float16)
        belongs = np.arange(depth) // size
        if act_order:
            belongs = random.permutation(belongs)
        weight = scales.astype(np.float32)[:, belongs] * (integers - zeros[:, belongs])
        return {
            ".qweight": np.ascontiguousarray(bits_of(integers, bits).T),
            ".qzeros": bits_of(zeros.T - (version == 1), bits),
            ".scales": np.ascontiguousarray(scales.T),
            ".g_idx": belongs.astype(np.int32),
        }, weight.astype(np.float32)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order}
    return Kind({**config, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}, write)


def awq(group: int) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        size = depth if group == -1 else group
        integers = random.integers(0, 16, (rows, depth))
        zeros = random.integers(0, 16, (rows, depth // size))
        scales = _scales(random, zeros.shape, 15).astype(np.float16)
        weight = np.repeat(scales.astype(np.float32), size, 1) * (integers - np.repeat(zeros, size, 1))

        def packed(values: Array) -> Array:  # (n, rows)
            words = np.zeros((len(values), rows // 8), np.uint32)
            for place, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                words |= values[:, row::8].astype(np.uint32) << np.uint32(4 * place)
            return words.view(np.int32)

        return {
            ".qweight": packed(integers.T),
            ".qzeros": packed(zeros.T),
            ".scales": np.ascontiguousarray(scales.T),
        }, weight.astype(np.float32)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Kind(config, write)


def compressed(layout: str, bits: int, group: int | None, *, symmetric: bool = True, act_order: bool = False) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        size = group or depth
        groups, least = -(-depth // size), -(1 << (bits - 1))
        integers = random.integers(least, -least, (rows, depth))
        zeros = np.zeros((rows, groups), np.int64) if symmetric else random.integers(least, -least, (rows, groups))
        scales = _scales(random, zeros.shape, -2 * least).astype(ml_dtypes.bfloat16)
        belongs = np.arange(depth) // size
        if act_order:
            belongs = random.permutation(belongs)
        weight = scales.astype(np.float32)[:, belongs] * (integers - zeros[:, belongs])
        tensors: Tensors = {".weight_scale": scales}
        if layout == "pack-quantized":
            tensors[".weight_packed"] = bits_of(integers - least, bits)
            tensors[".weight_shape"] = np.array([rows, depth])
        else:
            tensors[".weight"] = integers.astype(np.int8)
        if not symmetric and layout == "pack-quantized":
            tensors[".weight_zero_point"] = np.ascontiguousarray(bits_of((zeros - least).T, bits).T)
        elif not symmetric:
            tensors[".weight_zero_point"] = zeros.astype(np.int8)
        if act_order:
            tensors[".weight_g_idx"] = belongs.astype(np.int32)
        return tensors, weight.astype(np.float32)

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group}
    return _compressed(layout, {**weights, "strategy": "group" if group else "channel"}, write)


def compressed_float8(strategy: str) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        shape = {"tensor": (1,), "channel": (rows, 1), "block": (-(-rows // 32), -(-depth // 16))}[strategy]
        tensors, weight = _float8(random, rows, depth, shape, (32, 16))
        tensors[".input_scale"] = np.ones(1, np.float32)
        return {end.replace("_inv", ""): each for end, each in tensors.items()}, weight

    block = {"block_structure": [32, 16]} if strategy == "block" else {}
    return _compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": strategy, **block}, write)


def nvfp4(*, modelopt: bool = False) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        codes = random.integers(0, 16, (rows, depth)).astype(np.uint8)
        scales = random.uniform(1, 100, (rows, depth // 16)).astype(ml_dtypes.float8_e4m3fn)
        whole = np.array([2000.0], np.float32)
        weight = FP4[codes] * np.repeat(scales.astype(np.float32) / whole, 16, 1)
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        if modelopt:
            return {".weight": packed, ".weight_scale": scales, ".weight_scale_2": 1 / whole.reshape(())}, weight
        return {".weight_packed": packed, ".weight_scale": scales, ".weight_global_scale": whole}, weight

    if modelopt:
        return Kind({"quant_method": "modelopt", "quant_algo": "NVFP4"}, write)
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    return _compressed("nvfp4-pack-quantized", weights, write)


def _compressed(layout: str, weights: dict[str, Any], write: Writer) -> Kind:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    config = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": ["lm_head"]}
    return Kind(config, write)


def float8_blocks(block: int, dtype: Any = ml_dtypes.float8_e4m3fn) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        shape = (-(-rows // block), -(-depth // block))
        return _float8(random, rows, depth, shape, (block, block), dtype)

    return Kind({"quant_method": "fp8", "weight_block_size": [block, block]}, write)


def fbgemm() -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        tensors, weight = _float8(random, rows, depth, (rows, 1), (1, depth))
        return {".weight": tensors[".weight"], ".weight_scale": tensors[".weight_scale_inv"]}, weight

    return Kind({"quant_method": "fbgemm_fp8"}, write)


def float8_tensor(config: dict[str, Any]) -> Kind:
    """Floats with one scale, and scales of activations and caches."""

    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        tensors, weight = _float8(random, rows, depth, (), (rows, depth))
        unused = {end: np.ones((), np.float32) for end in (".input_scale", ".k_scale")}
        return {".weight": tensors[".weight"], ".weight_scale": tensors[".weight_scale_inv"], **unused}, weight

    return Kind(config, write)


def auto_round(kind: Kind, layout: str) -> Kind:
    """AutoRound's description of a layout, with the name of an unquantized module."""
    kept = {key: kind.config[key] for key in ("bits", "group_size")}
    own = {"lm_head": {"bits": 16, "data_type": "float"}, "model.layers.0.self_attn.q_proj": kept}
    config = {"quant_method": "auto-round", "packing_format": f"auto_round:{layout}", "data_type": "int"}
    return replace(kind, config={**config, **kept, "sym": kind.config.get("sym", False), "extra_config": own})


def _float8(
    random: np.random.Generator,
    rows: int,
    depth: int,
    shape: tuple[int, ...],
    block: tuple[int, int],
    dtype: Any = ml_dtypes.float8_e4m3fn,
) -> Written:
    # Subnormal numbers among them: the smallest normal one is 2 ** -6.
    values = (random.standard_normal((rows, depth)) * 10.0 ** random.uniform(-3, 1.5, (rows, depth))).astype(dtype)
    scales = (_SPREAD * random.uniform(0.01, 0.05, shape)).astype(np.float32)
    if scales.size > 1:
        tall, wide = (block[0] if shape[0] < rows else 1), (depth if shape[1] == 1 else block[1])
        spread = np.repeat(np.repeat(scales, tall, 0), wide, 1)[:rows, :depth]
    else:
        spread = scales.reshape(1, 1)
    return {".weight": values, ".weight_scale_inv": scales}, values.astype(np.float32) * spread


def nf4(*, nested: bool, block: int = 64) -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        codes = random.integers(0, 16, rows * depth).astype(np.uint8)
        blocks = -(-codes.size // block)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": [rows, depth]}
        tensors: Tensors = {".weight": (codes[::2] << 4 | codes[1::2])[:, None], ".weight.quant_map": NF4}
        absmax = random.uniform(0.5, 1.5, blocks).astype(np.float32) * np.float32(2 * _SPREAD)
        if nested:
            table = np.sort(random.uniform(-1, 1, 256)).astype(np.float32)
            stored, scales = random.integers(0, 256, blocks), random.uniform(0.1, 0.2, -(-blocks // 256))
            state |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
            tensors[".weight.absmax"] = stored.astype(np.uint8)
            tensors[".weight.nested_absmax"] = scales.astype(np.float32)
            tensors[".weight.nested_quant_map"] = table
            absmax = table[stored] * np.repeat(scales.astype(np.float32), 256)[:blocks] + np.float32(0.25)
        else:
            tensors[".weight.absmax"] = absmax
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors[".weight.quant_state.bitsandbytes__nf4"] = text
        weight = NF4[codes] * np.repeat(absmax, block)[: codes.size]
        return tensors, weight.reshape(rows, depth).astype(np.float32)

    return Kind({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, write)


def llm_int8() -> Kind:
    def write(random: np.random.Generator, rows: int, depth: int) -> Written:
        integers = random.integers(-127, 128, (rows, depth)).astype(np.int8)
        scales = (2 * _SPREAD * random.uniform(0.5, 1.5, rows)).astype(np.float32)
        tensors: Tensors = {".weight": integers, ".SCB": scales, ".weight_format": np.zeros((), np.uint8)}
        return tensors, integers * (scales[:, None] / np.float32(127))

    return Kind({"quant_method": "bitsandbytes", "load_in_8bit": True}, write)


def _scales(random: np.random.Generator, shape: tuple[int, ...], levels: int) -> Array:
    return random.uniform(0.5, 1.5, shape) * (4 * _SPREAD / levels)


def kinds() -> dict[str, Kind]:
    """Return all tested quantization formats, by name."""
    return {
        "gptq": gptq(4, 32, symmetric=True, act_order=False),
        "auto-round-gptq": auto_round(gptq(4, 32, symmetric=True, act_order=False), "auto_gptq"),
        "auto-round-awq": auto_round(awq(32), "auto_awq"),
        "gptq-asymmetric": gptq(4, 16, symmetric=False, act_order=False),
        "gptq-v2": gptq(4, 32, symmetric=False, act_order=False, version=2),
        "gptq-act-order": gptq(4, 32, symmetric=False, act_order=True),
        "gptq-whole-rows": gptq(4, -1, symmetric=True, act_order=False),
        "gptq-2-bits": gptq(2, 32, symmetric=False, act_order=False),
        "gptq-3-bits": gptq(3, 32, symmetric=False, act_order=True),
        "gptq-8-bits": gptq(8, 32, symmetric=False, act_order=True),
        "awq": awq(32),
        "awq-whole-rows": awq(-1),
        "compressed-4-bits": compressed("pack-quantized", 4, 32),
        "compressed-4-bits-asymmetric": compressed("pack-quantized", 4, 32, symmetric=False, act_order=True),
        "compressed-8-bits-packed": compressed("pack-quantized", 8, None),
        "compressed-8-bits": compressed("int-quantized", 8, None),
        "compressed-8-bits-asymmetric": compressed("int-quantized", 8, 16, symmetric=False),
        "compressed-float8-tensor": compressed_float8("tensor"),
        "compressed-float8-channel": compressed_float8("channel"),
        "compressed-float8-block": compressed_float8("block"),
        "compressed-nvfp4": nvfp4(),
        "modelopt-nvfp4": nvfp4(modelopt=True),
        "modelopt-fp8": float8_tensor({"quant_method": "modelopt", "quant_algo": "FP8"}),
        "fp8-static": float8_tensor({"quant_method": "fp8", "activation_scheme": "static"}),
        "nf4": nf4(nested=False),
        "nf4-nested": nf4(nested=True),
        "nf4-across-rows": nf4(nested=True, block=128),
        "llm-int8": llm_int8(),
        "fp8": float8_blocks(32),
        "fp8-uneven": float8_blocks(24),
        "fp8-e5m2": float8_blocks(32, ml_dtypes.float8_e5m2),
        "fbgemm": fbgemm(),
    }


def write_quantized(kind: Kind, folder: Path, family: str = "llama", **changes: Any) -> Any:
    """Write a random model with quantized matmuls; return the torch module with the same values."""
    import torch
    from safetensors.torch import load_file, save_file

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    model = save_model(family, folder, **{**sizes, "tie_word_embeddings": False, **changes})
    random = np.random.default_rng(3)
    tensors = load_file(folder / "model.safetensors")
    parameters = dict(model.named_parameters())
    for name in sorted(tensors):
        if not name.endswith(("proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")):
            continue
        parts, weight = kind.write(random, *tensors.pop(name).shape)
        module = name.removesuffix(".weight")
        tensors |= {module + end: torch_tensor(each) for end, each in parts.items()}
        with torch.no_grad():
            _destination(parameters, name).copy_(torch.from_numpy(weight))
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": kind.config}))
    return model


def _destination(parameters: dict[str, Any], name: str) -> Any:
    """The part of a parameter of transformers that a tensor of a file becomes: it stacks experts, w1 upon w3."""
    if name in parameters:
        return parameters[name]
    layer, _, rest = name.partition(".block_sparse_moe.experts.")
    expert, part, _ = rest.split(".")
    down = part == "w2"
    whole = parameters[f"{layer}.mlp.experts.{'down_proj' if down else 'gate_up_proj'}"][int(expert)]
    half = len(whole) // 2
    return whole if down else whole[:half] if part == "w1" else whole[half:]


def torch_tensor(array: Array) -> Any:
    """An array as a tensor of torch, of a type that NumPy has from ml_dtypes or of its own."""
    import torch

    wide = {"bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn)}
    wide["float8_e5m2"] = (np.uint8, torch.float8_e5m2)
    if str(array.dtype) in wide:
        raw, dtype = wide[str(array.dtype)]
        return torch.from_numpy(np.ascontiguousarray(array).view(raw)).view(dtype)
    return torch.from_numpy(np.array(array))
