"""Models of one kernel that measure a device's utilization: matmuls for tensor cores, rows for memory bandwidth."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.gpu_pack.build import Case, Model, arrays_of
from benchmarks.gpu_pack.generator import seed_of
from benchmarks.gpu_pack.references import tolerance
from benchmarks.gpu_pack.seeded import Array, Weight

# Sums of 4096 products: float32 adds in another order, and other results are rounded to 11 and 8 bits.
_PRODUCTS = {"float32": 2e-5, "float16": 1e-3, "bf16": 8e-3}
_TYPES: dict[str, tuple[Any, int]] = {
    "float32": (np.dtype("float32"), TensorProto.FLOAT),
    "float16": (np.dtype("float16"), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
    "int8": (np.dtype("int8"), TensorProto.INT8),
}


def product(precision: str, size: int) -> Model:
    """y = x w for square matrices, w fixed; operands and result in the precision, int8 with an int32 result."""
    dtype, element = _TYPES[precision]
    is_int8 = precision == "int8"
    weight = Weight(seed_of("product", "w"), size, (size, size))
    values = weight.values().T  # a row of the generator is a channel of the result
    unit = 1.0 if is_int8 else 2.0**-13
    spec = _real("x", [size, size], "bfloat16" if precision == "bf16" else str(dtype), seed_of("product", "x"))
    if is_int8:
        spec["make"] = {"kind": "integers", "seed": seed_of("product", "x"), "low": -127, "high": 128}
    x = arrays_of([spec])["x"]
    exact = x.astype(np.float64) @ (values.astype(np.float64) * unit)
    nodes = [helper.make_node("MatMulInteger" if is_int8 else "MatMul", ["x", "w"], ["y"])]
    constant = _tensor(
        "w", values if is_int8 else (values.astype(np.float32) * np.float32(unit)).astype(dtype), element
    )
    model = _model(
        nodes,
        {"x": ([size, size], element)},
        {"y": ([size, size], TensorProto.INT32 if is_int8 else element)},
        [constant],
    )
    allowed = tolerance(absolute=0.5) if is_int8 else tolerance(rms=_PRODUCTS[precision])
    return Model(model, {}, [Case([spec], {"y": exact})], allowed, allowed, [weight])


def elementwise(rows: int, columns: int) -> Model:
    """y = relu(x a + b), float32: reads and writes `rows` times `columns` numbers and is bound by memory."""
    specs = [
        _real("x", [rows, columns], "float32", seed_of("elementwise", "x")),
        *(_real(name, [columns], "float32", seed_of("elementwise", name)) for name in "ab"),
    ]
    arrays = {name: array.astype(np.float32) for name, array in arrays_of(specs).items()}
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    shapes = {
        "x": ([rows, columns], TensorProto.FLOAT),
        "a": ([columns], TensorProto.FLOAT),
        "b": ([columns], TensorProto.FLOAT),
    }
    model = _model(nodes, shapes, {"y": ([rows, columns], TensorProto.FLOAT)}, [])
    result = np.maximum(arrays["x"] * arrays["a"] + arrays["b"], 0)
    return Model(model, {}, [Case(specs, {"y": result})], tolerance(relative=1e-6), tolerance(relative=1e-6))


def softmax(rows: int, columns: int) -> Model:
    """Softmax of rows, float32: a reduction bound by memory."""
    specs = [_real("x", [rows, columns], "float32", seed_of("softmax", "x"))]
    x = arrays_of(specs)["x"]
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=-1)]
    shape = {"x": ([rows, columns], TensorProto.FLOAT)}
    model = _model(nodes, shape, {"y": ([rows, columns], TensorProto.FLOAT)}, [])
    powers = np.exp(x - x.max(-1, keepdims=True))
    return Model(
        model,
        {},
        [Case(specs, {"y": powers / powers.sum(-1, keepdims=True)})],
        tolerance(rms=1e-5),
        tolerance(rms=1e-5),
    )


def _real(name: str, shape: list[int], dtype: str, seed: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, "make": {"kind": "reals", "seed": seed}}


def _tensor(name: str, array: Array, element: int) -> onnx.TensorProto:
    return helper.make_tensor(name, element, array.shape, np.ascontiguousarray(array).tobytes(), raw=True)


def _model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: list[Any]) -> onnx.ModelProto:
    def values(described: dict[str, Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, element, shape) for name, (shape, element) in described.items()]

    graph = helper.make_graph(nodes, "single", values(inputs), values(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
