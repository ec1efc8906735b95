"""Small modules built with TVM directly, without any of the compiler's own passes."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)

import tvm  # isort: skip
from tvm import relax  # isort: skip

from compiler.artifact import Artifact, TargetDescription, TensorDescription
from compiler.runtime import Module
from tests.compiler.artifact.samples import create_artifact

Shape = tuple[int | str, ...]
Tensors = Sequence[tuple[str, Shape, str]]
Body = Callable[..., Any]
MEGABYTE = 1 << 20


def build_artifact(
    inputs: Tensors,
    outputs: Tensors,
    body: Body,
    parameters: Mapping[str, np.ndarray[Any, Any]] | None = None,
    **fields: Any,
) -> Artifact:
    """Compile `body(*inputs, *parameters) -> [relax expressions]` for any machine of this architecture.

    Args:
        inputs, outputs: (name, shape, dtype) of each; a string in a shape is a symbolic dimension, or "2*" one.
        fields: further arguments of `create_artifact`.
    """
    weights = dict(parameters or {})
    described = [(name, tuple(array.shape), str(array.dtype)) for name, array in weights.items()]
    return create_artifact(
        **{
            "model_name": "small",
            "target": TargetDescription(name="test", architecture=platform.machine()),
            **fields,
        },
        inputs=_describe(inputs),
        outputs=_describe(outputs),
        library=_library([*inputs, *described], body),
        parameters=weights,
    )


def _describe(tensors: Tensors) -> list[TensorDescription]:
    return [TensorDescription(name=name, shape=shape, dtype=dtype) for name, shape, dtype in tensors]


def _library(arguments: Tensors, body: Body) -> bytes:
    symbols: dict[str, Any] = {}

    def dimension(size: int | str) -> Any:
        if isinstance(size, int):
            return size
        if size.startswith("2*"):
            return 2 * dimension(size[2:])
        return symbols.setdefault(size, tvm.tirx.Var(size, "int64"))

    variables = [
        relax.Var(f"a{index}", relax.TensorType(tuple(map(dimension, shape)), dtype))
        for index, (_, shape, dtype) in enumerate(arguments)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            results = [builder.emit(result) for result in body(*variables)]
            result = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(result)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.so"
        relax.build(builder.get(), tvm.target.Target({"kind": "llvm"})).export_library(str(path))
        return path.read_bytes()


@cache
def dense_artifact() -> Artifact:
    """y = x @ w + b for x: float32[n, 16]; with a reference."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 8), np.float32)
    bias = random.standard_normal(8, np.float32)
    x = random.standard_normal((3, 16), np.float32)
    return build_artifact(
        [("x", ("n", 16), "float32")],
        [("y", ("n", 8), "float32")],
        lambda x, w, b: [relax.op.add(relax.op.matmul(x, w), b)],
        {"weight": weight, "bias": bias},
        reference_inputs={"x": x},
        reference_outputs={"y": (x.astype(np.float64) @ weight + bias).astype(np.float32)},
    )


@cache
def pair_artifact() -> Artifact:
    """Sum and difference of left and right: float32[n, 4] and float32[n, 4]."""
    return build_artifact(
        [("left", ("n", 4), "float32"), ("right", ("n", 4), "float32")],
        [("sum", ("n", 4), "float32"), ("difference", ("n", 4), "float32")],
        lambda left, right: [relax.op.add(left, right), relax.op.subtract(left, right)],
    )


@cache
def elementwise_artifact(dtype: str, operation: str = "add", shape: Shape = ("n", 3)) -> Artifact:
    """y = operation(x, x) in one element type."""
    return build_artifact([("x", shape, dtype)], [("y", shape, dtype)], lambda x: [getattr(relax.op, operation)(x, x)])


def squares() -> Module:
    """y = the sums of squares of rows of x: float32[n, 2**18], with a megabyte of squares for each row."""
    shape = ("n", MEGABYTE // 4)
    return Module(
        build_artifact(
            [("x", shape, "float32")],
            [("y", ("n",), "float32")],
            lambda x: [relax.op.sum(relax.op.multiply(x, x), axis=1)],
        )
    )
