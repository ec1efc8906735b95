"""Modules for the artifact suite: one with parameters of many element types, and two by the compiler."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np

from compiler.artifact import Artifact
from tests.compiler.runtime.building import build_artifact

from tvm import relax, tirx  # isort: skip  (after `building`, which loads it without torch)


def mixed_artifact() -> Artifact:
    """z = the sum of x: float32[4, 4] and parameters of five element types; and a scalar parameter as it is."""
    parameters = {
        "half": np.ones((4, 4), np.float16),
        "brain": np.ones(4, ml_dtypes.bfloat16),
        "integers": np.arange(16, dtype=np.int32).reshape(4, 4),
        "mask": np.eye(4, dtype=np.bool_),
        "nibbles": np.ones((4, 4), ml_dtypes.int4),
        "scalar": np.array(7, np.int64),
    }

    def body(x: object, *weights: object) -> list[object]:
        total = x
        for weight in weights[:-1]:
            total = relax.op.add(total, relax.op.astype(weight, "float32"))
        return [total, weights[-1]]

    return build_artifact(
        [("x", (4, 4), "float32")],
        [("z", (4, 4), "float32"), ("scalar", (), "int64")],
        body,
        parameters,
        reference_inputs={"x": np.zeros((4, 4), np.float32)},
        reference_outputs={
            "z": np.arange(16, dtype=np.float32).reshape(4, 4) + 3 + np.eye(4, dtype=np.float32),
            "scalar": np.array(7, np.int64),
        },
        assets={"tokenizer.json": b"{}"},
    )


def compiled_artifact() -> Artifact:
    """y = (x @ w) @ v for x: float32[n, 6], through the whole compiler: `main` does not check its parameters."""
    import compiler

    x = relax.Var("x", relax.TensorType((tirx.Var("n", "int64"), 6), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            first = builder.emit(relax.op.matmul(x, relax.const(np.ones((6, 5), np.float32))))
            second = builder.emit(relax.op.matmul(first, relax.const(np.full((5, 4), 2, np.float32))))
            result = builder.emit_output(relax.Tuple([second]))
        builder.emit_func_output(result)
    return compiler.compile(builder.get()).artifact


def language_artifact() -> Artifact:
    """A small language model: states, a position, requirements, indices and assets."""
    import compiler
    from tests.compiler.generation.models import write_folder

    with TemporaryDirectory() as folder:
        write_folder(Path(folder))
        return compiler.compile(folder, threads=1).artifact
