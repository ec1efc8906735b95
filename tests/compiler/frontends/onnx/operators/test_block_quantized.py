"""Block-quantized weights: matrix products read the stored integers directly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

DEPTH, COLUMNS, BLOCK = 200, 96, 32
BLOCKS = -(-DEPTH // BLOCK)


def model(nodes: list[onnx.NodeProto], depth: int, weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", depth])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", COLUMNS])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=opsets, ir_version=10)


def check(source: onnx.ModelProto, depth: int, weight: np.ndarray, bytes_: int) -> None:
    """The numbers are those of `weight` (depth, columns), and the module stores `bytes_` beside its scales."""
    module = compiler.compile(source, threads=1)
    x = np.random.default_rng(1).standard_normal((3, depth)).astype(np.float32)
    wanted = x.astype(np.float64) @ weight
    got = module.run({"x": x})["y"]
    assert np.abs(got - wanted).max() <= 1e-6 * (np.abs(x) @ np.abs(weight)).max()
    kernels = [kernel.rule for kernel in module.manifest.kernels]
    assert kernels == ["matmul-grouped"]
    sizes = [parameter.nbytes for parameter in module.manifest.parameters]
    assert min(abs(size - bytes_) for size in sizes) <= bytes_ / 3  # columns are padded to whole panels


def bits_of(packed: np.ndarray, bits: int) -> np.ndarray:
    return np.stack([packed >> shift & (2**bits - 1) for shift in range(0, 8, bits)], -1).reshape(
        *packed.shape[:-1], -1
    )


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_n_bits(bits: int, zeros: bool) -> None:
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 256, (COLUMNS, BLOCKS, BLOCK * bits // 8)).astype(np.uint8)
    scales = generator.uniform(0.5, 2, (COLUMNS, BLOCKS)).astype(np.float32)
    zero = generator.integers(0, 256, (COLUMNS, -(-BLOCKS * bits // 8))).astype(np.uint8)
    arrays: dict[str, np.ndarray] = {"b": packed, "s": scales.reshape(-1), **({"z": zero.reshape(-1)} if zeros else {})}
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=DEPTH, N=COLUMNS, bits=bits, block_size=BLOCK
    )
    middle = bits_of(zero, bits)[:, :BLOCKS, None].astype(float) if zeros else 2.0 ** (bits - 1)
    wide = (bits_of(packed, bits) - middle) * scales[..., None]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    source = model([node], DEPTH, weights)
    check(source, DEPTH, wide.reshape(COLUMNS, -1)[:, :DEPTH].T, DEPTH * COLUMNS * bits // 8)


@pytest.mark.parametrize("kind", [0, 1], ids=["FP4", "NF4"])
@pytest.mark.parametrize("depth", [192, 200, 202])
def test_matmul_bnb4(kind: int, depth: int) -> None:
    """ONNX Runtime is the reference: codes, their order, and blocks that span two rows, by steps of 8 and of 2."""
    block = 64
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, COLUMNS * depth // 2).astype(np.uint8)
    scales = generator.uniform(0.5, 2, -(-COLUMNS * depth // block)).astype(np.float32)
    attributes: dict[str, Any] = {"K": depth, "N": COLUMNS, "block_size": block, "quant_type": kind}
    node = helper.make_node("MatMulBnb4", ["x", "b", "s"], ["y"], domain="com.microsoft", **attributes)
    source = model([node], depth, [numpy_helper.from_array(codes, "b"), numpy_helper.from_array(scales, "s")])
    module = compiler.compile(source, threads=1)
    x = generator.standard_normal((3, depth)).astype(np.float32)
    wanted = run_reference(source, {"x": x})[0]
    np.testing.assert_allclose(module.run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
    stored = sum(parameter.nbytes for parameter in module.manifest.parameters)
    assert depth == 202 or stored < 2 * COLUMNS * depth


def test_one_table_for_embedding_and_head_in_integers() -> None:
    """As onnxruntime-genai writes it: the embedding is a reshape of the head's weight, which is too large to fold."""
    columns, depth, block = 16_400, 512, 32
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 256, (columns, depth // block, block // 2)).astype(np.uint8)
    scales = generator.uniform(0.5, 2, (columns, depth // block)).astype(np.float16).astype(np.float32)
    arrays: dict[str, np.ndarray] = {"b": packed, "s": scales, "shape": np.array([columns, depth // 2])}
    sizes: dict[str, Any] = {"K": depth, "N": columns, "bits": 4, "block_size": block}
    nodes = [
        helper.make_node("Reshape", ["b", "shape"], ["d"]),
        helper.make_node(
            "GatherBlockQuantized", ["d", "ids", "s"], ["e"], domain="com.microsoft", bits=4, block_size=block
        ),
        helper.make_node("MatMulNBits", ["e", "b", "s"], ["y"], domain="com.microsoft", accuracy_level=4, **sizes),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in ("e", "y")]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", [ids], outputs, weights)
    module = compiler.compile(helper.make_model(graph, opset_imports=opsets, ir_version=10), threads=1)
    places = np.array([0, 7, -1])
    got = module.run({"ids": places})
    table = ((bits_of(packed, 4).astype(np.float32) - 8) * scales[..., None]).reshape(columns, depth)
    np.testing.assert_array_equal(got["e"], table[places])
    wanted = table[places].astype(np.float64) @ table.T
    assert np.abs(got["y"] - wanted).max() <= 0.01 * np.abs(wanted).max()
    assert sum(parameter.nbytes for parameter in module.manifest.parameters) <= 1.05 * columns * depth * (
        0.5 + 2 / block
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_dequantize_linear_of_int4(axis: int) -> None:
    depth = 6 * BLOCK
    generator = np.random.default_rng(0)
    values = generator.integers(-8, 8, (depth, COLUMNS) if axis == 0 else (COLUMNS, depth)).astype(np.int8)
    shape = list(values.shape)
    shape[axis] //= BLOCK
    scales = generator.uniform(0.5, 2, shape).astype(np.float32)
    weight = helper.make_tensor("w", TensorProto.INT4, values.shape, values.ravel().tolist())
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=axis, block_size=BLOCK)]
    if axis == 1:
        nodes.append(helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "t" if axis else "d"], ["y"]))
    wide = values * np.repeat(scales.astype(float), BLOCK, axis)
    source = model(nodes, depth, [weight, numpy_helper.from_array(scales, "s")])
    check(source, depth, wide if axis == 0 else wide.T, depth * COLUMNS // 2)
