"""The parts of a loop: its state, its iterations and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.dtypes import carrier
from compiler.frontends.onnx.operators.control_flow.structures import structure_of
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value


@dataclass(frozen=True)
class Step:
    """What one iteration gives: whether to go on, the next state, an element of each stack."""

    go: Value
    state: list[Value]
    elements: list[Value]


@dataclass(frozen=True)
class Loop:
    """A loop. `trips` is a scalar, the most iterations (None: no limit); `go` a condition to start (None: true).

    `body` is called with the iteration's number and the state; `weight` is how many nodes it has. `control` are the
    node's inputs that must be known for the loop to be written out.
    """

    body: Callable[[Value, list[Value]], Step]
    trips: Value | None
    go: Value | None
    state: list[Value]
    weight: int
    sources: frozenset[str]
    control: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoopResult:
    """The state at the end, and the elements of all iterations stacked along a new first axis."""

    state: list[Value]
    stacks: list[Value]


def known_scalar(value: Value | None) -> int | None:
    """The value of a constant scalar, or None."""
    if isinstance(value, Constant):
        return int(value.array.reshape(-1)[0])
    return None


def element_kind(context: NodeContext, value: Value) -> tuple[tuple[object, ...], str]:
    """Shape and type of an element of a stack; refuses anything but tensors."""
    if not isinstance(value, (Constant, Symbolic, Runtime)):
        context.refuse(f"an output that is stacked over the iterations is {structure_of(value).describe()}")
    return value.shape, value.dtype


def empty_stack(context: NodeContext, shape: Sequence[object], dtype: str) -> relax.Expr:
    """A stack without elements of that shape."""
    if all(isinstance(d, int) for d in shape):
        return Constant(np.empty((0, *shape), carrier(dtype)), dtype).expr()  # type: ignore[arg-type]
    return context.emit(R.zeros(relax.ShapeExpr([0, *shape]), carrier(dtype)))
