"""Subjects with defects that the hostile suite must detect, and some correct subjects."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tests.fuzz.hostile.catalog import Onnx, Run, Subject, floats, ints, node
from tests.fuzz.hostile.subjects import subjects as every

_CHOSEN = ("Gather", "QuantizeLinear in blocks")


def _kernel(statement: Callable[[Any, Any, Any], None]) -> Callable[[], Any]:
    """A module y = x whose kernel runs one more statement on (x, index, y); nothing checks the index."""

    def source() -> Any:
        from tvm import relax, te, tirx
        from tvm.script.ir_builder import IRBuilder
        from tvm.script.ir_builder import tirx as T

        def generate(ins: Any, outs: Any) -> Any:
            data, index, result = (T.buffer_proxy(each) for each in (*ins, *outs))
            with IRBuilder() as builder:
                with T.seq_scope():
                    with T.serial(0, tirx.const(15, "int64")) as i:
                        result[i] = data[i]
                    statement(data, index[0], result)
                return builder.get()

        def copied(x: Any, i: Any) -> Any:
            return te.extern([[16]], [x, i], generate, dtype="float32", name="planted")

        builder = relax.BlockBuilder()
        x, i = relax.Var("x", relax.TensorType((16,), "float32")), relax.Var("i", relax.TensorType((1,), "int64"))
        with builder.function("main", [x, i]):
            builder.emit_func_output(builder.emit_te(copied, x, i))
        return builder.get()

    return source


def _reads(data: Any, index: Any, result: Any) -> None:
    result[15] = data[index]


def _writes(data: Any, index: Any, result: Any) -> None:
    result[15] = data[0]
    result[index] = data[1]


def _forgets(data: Any, index: Any, result: Any) -> None:
    result[index] = data[index]


def _planted(name: str, statement: Callable[[Any, Any, Any], None], *indices: int) -> Subject:
    good = {"x": floats(16), "i": ints(15)}
    runs = tuple(Run(f"i={index}", {**good, "i": ints(index)}) for index in indices)
    return Subject(name, "input", _kernel(statement), good, runs)


@cache
def subjects() -> tuple[Subject, ...]:
    """Subjects with defects first."""
    gather = Onnx(
        "a clamp that is written out",
        [
            node("Clip", ["i", "low", "high"], ["inside"]),
            node("Gather", ["x", "inside"], ["y"]),
        ],
        {"x": floats(16), "i": ints(3)},
        [("i=99", {"i": ints(99)})],
        constants={"low": np.array(0), "high": np.array(15)},
    )
    planted = (
        _planted("reads", _reads, 3, -1),
        _planted("writes", _writes, 3, 16),
        _planted("forgets", _forgets, 15, 3),
    )
    return (*planted, *gather.subjects(), *(each for each in every() if each.name in _CHOSEN))
