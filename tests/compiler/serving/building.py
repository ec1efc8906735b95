"""Modules and services for the tests of serving."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.artifact import Artifact
from compiler.errors import InputError
from compiler.runtime import Module
from compiler.runtime.executor import LocalExecutor
from tests.compiler.runtime.building import build_artifact, dense_artifact

from tvm import relax  # isort: skip


class Watched(LocalExecutor):
    """Notes the rows of each run, and has it wait until it is let go; runs of an input `x` that holds 13.0 fail."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, 1, None)
        self.rows: list[int] = []
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.go.set()

    def run(self, inputs: Any, threads: int, *, as_numpy: bool = True, out: Any = None) -> dict[str, Any]:
        self.rows.append(len(inputs["x"]))
        self.begun.release()
        self.go.wait()
        if (inputs["x"] == 13.0).any():
            raise InputError("13 is not allowed")
        return super().run(inputs, threads, as_numpy=as_numpy, out=out)


def watched() -> tuple[Module, Watched]:
    """The module y = x @ w + b for x: float32[n, 16], and what watches it."""
    executor = Watched(dense_artifact())
    return Module(dense_artifact(), threads=1, executor=executor), executor


@cache
def module_of(kind: str) -> Module:
    """Small modules whose rows differ in how they depend on each other."""
    described: dict[str, tuple[Sequence[Any], Sequence[Any], Callable[..., Any]]] = {
        "rows": ([("x", ("n", 4), "float32")], [("y", ("n", 4), "float32")], lambda x: [relax.op.exp(x)]),
        "mixed": (
            [("x", ("n", 4), "float32")],
            [("y", ("n", 4), "float32")],
            lambda x: [relax.op.subtract(x, relax.op.mean(x, axis=[0], keepdims=True))],
        ),
        "columns": (
            [("x", ("t", "n"), "float32")],
            [("y", ("t", "n"), "float32")],
            lambda x: [relax.op.nn.softmax(x, axis=0)],
        ),
        "fixed": ([("x", (4, 3), "float32")], [("y", (4, 3), "float32")], lambda x: [relax.op.exp(x)]),
        "fixed mixed": ([("x", (4, 3), "float32")], [("y", (4, 3), "float32")], lambda x: [relax.op.cumsum(x, 0)]),
        "shared": (
            [("x", ("n", 4), "float32"), ("scale", (), "float32")],
            [("y", ("n", 4), "float32")],
            lambda x, scale: [relax.op.multiply(x, scale)],
        ),
        "total": ([("x", ("n", 4), "float32")], [("y", (4,), "float32")], lambda x: [relax.op.sum(x, axis=0)]),
        "sequences": (
            [("x", ("n", "t"), "float32")],
            [("y", ("n", "t"), "float32")],
            lambda x: [relax.op.nn.softmax(x, axis=1)],
        ),
    }
    inputs, outputs, body = described[kind]
    return Module(build_artifact(inputs, outputs, body), threads=1)
