"""The parts of a loop: its state, its body as a function, its iterations and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.dtypes import carrier
from compiler.frontends.onnx.operators.control_flow.conditional import scalar_condition
from compiler.frontends.onnx.operators.control_flow.structures import (
    Lifted,
    Structure,
    Tensor,
    lift,
    materialized,
    rebuild,
    same_structure,
    structure_of,
    tensors_in,
)
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value

# The parts of a loop: its state, its iterations and its results.


@dataclass(frozen=True)
class Step:
    """Result of one iteration: whether to go on, the next state, an element of each stack."""

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


# The body of a loop as a function: imported until what is assumed of the state holds after an iteration too.


COUNTER = relax.TensorType([], "int64")


@dataclass
class Body:
    """The body as a function, and what its import told about it."""

    function: Lifted
    ends_early: bool
    state: list[Tensor]
    element_shapes: list[tuple[Dim, ...]]
    element_dtypes: list[str]


@dataclass
class State:
    """The tensors that the iterations hand on: all of those in the loop's state but the ones that never change."""

    structures: list[Structure]
    initial: list[Tensor]
    varying: list[set[int]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)

    def carried(self) -> list[int]:
        return [index for index in range(len(self.initial)) if index not in self.fixed]

    def shape(self, context: NodeContext, index: int) -> list[Dim]:
        """The shape of a tensor in any iteration; sizes that change are fresh ones."""
        return [
            context.dimension() if axis in self.varying[index] else size
            for axis, size in enumerate(self.initial[index].shape)
        ]

    def carrier(self, index: int) -> str:
        return carrier(self.initial[index].dtype)

    def types(self, context: NodeContext) -> list[relax.TensorType]:
        return [relax.TensorType(self.shape(context, index), self.carrier(index)) for index in self.carried()]


def fitting_body(context: NodeContext, loop: Loop, state: State, trips: relax.Expr | None) -> Body:
    """The body imported until the assumed shapes of its state hold after it too."""
    importer = context.importer
    while True:
        refusals, missing = len(importer.refusals), len(importer.missing_values)
        body = _import_body(context, loop, state, trips)
        if not _widen(context, state, body):
            return body
        del importer.refusals[refusals:], importer.missing_values[missing:]


def _import_body(context: NodeContext, loop: Loop, state: State, trips: relax.Expr | None) -> Body:
    found: dict[str, Body] = {}

    def parameters() -> list[tvm.ir.Var]:
        unique = context.importer.builder.unique_name
        return [
            tvm.ir.Var(unique("iteration"), COUNTER),
            *(tvm.ir.Var(unique("state"), ty) for ty in state.types(context)),
        ]

    def results(variables: Sequence[tvm.ir.Var]) -> list[relax.Expr]:
        iteration, *carried = variables
        tensors: list[Tensor] = list(state.initial)
        for index, variable in zip(state.carried(), carried, strict=True):
            tensors[index] = Runtime(variable, state.initial[index].dtype, loop.sources)
        supply = iter(tensors)
        values = [rebuild(structure, supply) for structure in state.structures]
        step = loop.body(Runtime(iteration, "int64", loop.sources), values)
        _check_structures(context, state.structures, [structure_of(value) for value in step.state])
        kinds = [element_kind(context, value) for value in step.elements]
        after = [tensor for value in step.state for tensor in tensors_in(value)]
        following = context.emit(R.add(iteration, relax.const(1, "int64")))
        go, ends_early = _condition(context, step.go, following, trips)
        shapes = [tuple(shape) for shape, _ in kinds]
        found["body"] = Body(None, ends_early, after, shapes, [dtype for _, dtype in kinds])  # type: ignore[arg-type]
        # A tensor that only passes through is recognized by its expression, so it is bound as it is.
        exprs = [materialized(context, after[index]) for index in state.carried()]
        stacked = [materialized(context, tensor) for value in step.elements for tensor in tensors_in(value)]
        return [following, go, *exprs, *stacked]

    function = lift(context, "loop_body", parameters, results)
    body = found["body"]
    body.function = function
    return body


def _condition(
    context: NodeContext, go: object, following: relax.Expr, trips: relax.Expr | None
) -> tuple[relax.Expr, bool]:
    """The condition for another iteration, and True if the model's own condition can end the loop."""
    assert isinstance(go, (Constant, Symbolic, Runtime))
    if known_scalar(go) == 0:
        return relax.const(False, "bool"), True
    in_range = None if trips is None else context.emit(R.less(following, trips))
    if known_scalar(go) is not None:
        return relax.const(True, "bool") if in_range is None else in_range, False
    wanted = scalar_condition(context, materialized(context, go))
    return wanted if in_range is None else context.emit(R.logical_and(wanted, in_range)), True


def _check_structures(context: NodeContext, before: list[Structure], after: list[Structure]) -> None:
    if len(before) != len(after):
        context.invalid(f"its body returns {len(after)} values of its state, not {len(before)}")
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.kind == b.kind == "tensor" and a.dtype != b.dtype:
            context.invalid(f"value {index} of its state is {a.dtype} before and {b.dtype} after its body")
        if not same_structure(a, b):
            context.refuse(
                f"value {index} of its state is {a.describe()} before and {b.describe()} after an iteration, and the "
                "number of iterations is not known when compiling, or too large to write them out"
            )


def _widen(context: NodeContext, state: State, body: Body) -> bool:
    """Weaken what was assumed of the state to what holds after the body too; whether anything changed."""
    changed = False
    for index in state.carried():
        before, after = state.initial[index], body.state[index]
        if len(before.shape) != len(after.shape):
            context.refuse(
                f"a tensor of its state has {len(before.shape)} dimensions before and {len(after.shape)} after an "
                "iteration"
            )
        for axis, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)):
            if axis not in state.varying[index] and not context.arithmetic.equal_is_proved(a, b):
                state.varying[index].add(axis)
                changed = True
    return changed
