"""The parts of a loop: its state, its body as a function, its iterations and its results.

It may become two private functions: the body, and one that runs it up to 2**level times by calling itself twice.

The virtual machine keeps calls on its stack, which would overflow if a function called itself once per iteration. Here
the recursion depth is the logarithm of the number of iterations, and the number of calls is linear in it. Stacked
outputs are joined while returning, so each element is copied once per level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.dtypes import carrier
from compiler.frontends.onnx.operators.control_flow.conditional import choose, fields, scalar_condition
from compiler.frontends.onnx.operators.control_flow.structures import (
    Lifted,
    Structure,
    Tensor,
    function_body,
    lift,
    materialized,
    rebuild,
    same_structure,
    size_holder,
    structure_of,
    tensors_in,
)
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value, tensor_shape
from schedules.annotations import LOOP

# The parts of a loop: its state, its iterations and its results.


@dataclass(frozen=True)
class Step:
    """Result of one iteration: the loop condition, the next state, an element for each stack."""

    go: Value
    state: list[Value]
    elements: list[Value]


@dataclass(frozen=True)
class Loop:
    """A loop. `trips` is a scalar, the maximum number of iterations (None: no limit); `go` a condition to start (None:
    true).

    `body` is called with the iteration number and the state; `weight` is its number of nodes. `control` are the node's
    inputs that must be known to unroll the loop.
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
    """The final state, and the elements of all iterations stacked along a new first axis."""

    state: list[Value]
    stacks: list[Value]


def known_scalar(value: Value | None) -> int | None:
    """Return the value of a constant scalar, or None."""
    if isinstance(value, Constant):
        return int(value.array.reshape(-1)[0])
    return None


def size_value(size: Dim) -> Value:
    """Return a size as an int64 scalar."""
    if isinstance(size, int):
        return Constant(np.array(size, np.int64))
    array = np.empty((), object)
    array[()] = size
    return Symbolic(array, "int64")


def element_kind(context: NodeContext, value: Value) -> tuple[tuple[object, ...], str]:
    """Return shape and type of an element of a stack; refuses anything but tensors."""
    if not isinstance(value, (Constant, Symbolic, Runtime)):
        context.refuse(f"an output that is stacked over the iterations is {structure_of(value).describe()}")
    return value.shape, value.dtype


def empty_stack(context: NodeContext, shape: Sequence[object], dtype: str) -> relax.Expr:
    """Return an empty stack for elements of that shape."""
    if all(isinstance(d, int) for d in shape):
        return Constant(np.empty((0, *shape), carrier(dtype)), dtype).expr()  # type: ignore[arg-type]
    return context.emit(R.zeros(relax.ShapeExpr([0, *shape]), carrier(dtype)))


# The body of a loop as a function: imported until the assumptions about the state also hold after an iteration.


COUNTER = relax.TensorType([], "int64")


@dataclass
class Body:
    """The body as a function, and properties found by importing it."""

    function: Lifted
    ends_early: bool
    state: list[Tensor]
    element_shapes: list[tuple[Dim, ...]]
    element_dtypes: list[str]


@dataclass
class State:
    """The tensors passed between iterations: those of the loop's state that change."""

    structures: list[Structure]
    initial: list[Tensor]
    varying: list[set[int]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)

    def carried(self) -> list[int]:
        return [index for index in range(len(self.initial)) if index not in self.fixed]

    def shape(self, context: NodeContext, index: int) -> list[Dim]:
        """Return the shape of a tensor in any iteration; varying sizes are fresh ones."""
        return [
            context.dimension() if axis in self.varying[index] else size
            for axis, size in enumerate(self.initial[index].shape)
        ]

    def carrier(self, index: int) -> str:
        return carrier(self.initial[index].dtype)

    def types(self, context: NodeContext) -> list[relax.TensorType]:
        return [relax.TensorType(self.shape(context, index), self.carrier(index)) for index in self.carried()]


def fitting_body(context: NodeContext, loop: Loop, state: State, trips: relax.Expr | None) -> Body:
    """Import the body until the assumed shapes of its state also hold after it."""
    importer = context.importer
    while True:
        refusals, missing = len(importer.refusals), len(importer.missing_values)
        body = _import_body(context, loop, state, trips)
        if not _widen(context, state, body):
            return body
        del importer.refusals[refusals:], importer.missing_values[missing:]


def _import_body(context: NodeContext, loop: Loop, state: State, trips: relax.Expr | None) -> Body:
    imported: dict[str, Body] = {}

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
        new_state = [tensor for value in step.state for tensor in tensors_in(value)]
        following = context.emit(R.add(iteration, relax.const(1, "int64")))
        go, ends_early = _condition(context, step.go, following, trips)
        shapes = [tuple(shape) for shape, _ in kinds]
        imported["body"] = Body(None, ends_early, new_state, shapes, [dtype for _, dtype in kinds])  # type: ignore[arg-type]
        # A tensor that is only passed through is recognized by its expression, so it is bound unchanged.
        exprs = [materialized(context, new_state[index]) for index in state.carried()]
        stacked = [materialized(context, tensor) for value in step.elements for tensor in tensors_in(value)]
        return [following, go, *exprs, *stacked]

    function = lift(context, "loop_body", parameters, results)
    body = imported["body"]
    body.function = function
    return body


def _condition(
    context: NodeContext, go: object, following: relax.Expr, trips: relax.Expr | None
) -> tuple[relax.Expr, bool]:
    """Return the condition for another iteration, and True if the model's own condition can end the loop."""
    assert isinstance(go, (Constant, Symbolic, Runtime))
    if known_scalar(go) == 0:
        return relax.const(False, "bool"), True
    in_range = None if trips is None else context.emit(R.less(following, trips))
    if known_scalar(go) is not None:
        return relax.const(True, "bool") if in_range is None else in_range, False
    wanted = scalar_condition(context, materialized(context, go))
    return wanted if in_range is None else context.emit(R.logical_and(wanted, in_range)), True


def _check_structures(context: NodeContext, old_state: list[Structure], new_state: list[Structure]) -> None:
    if len(old_state) != len(new_state):
        context.invalid(f"its body returns {len(new_state)} values of its state, not {len(old_state)}")
    for index, (a, b) in enumerate(zip(old_state, new_state, strict=True)):
        if a.kind == b.kind == "tensor" and a.dtype != b.dtype:
            context.invalid(f"value {index} of its state is {a.dtype} before and {b.dtype} after its body")
        if not same_structure(a, b):
            context.refuse(
                f"value {index} of its state is {a.describe()} before and {b.describe()} after an iteration, and the "
                "number of iterations is not known when compiling, or too large to write them out"
            )


def _widen(context: NodeContext, state: State, body: Body) -> bool:
    """Weaken the assumptions about the state to what also holds after the body; return True if anything changed."""
    changed = False
    for index in state.carried():
        old, new = state.initial[index], body.state[index]
        if len(old.shape) != len(new.shape):
            context.refuse(
                f"a tensor of its state has {len(old.shape)} dimensions before and {len(new.shape)} after an iteration"
            )
        for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)):
            if axis not in state.varying[index] and not context.arithmetic.equal_is_proved(a, b):
                state.varying[index].add(axis)
                changed = True
    return changed


_HIGHEST_LEVEL = 62
_FLAG = relax.TensorType([], "bool")


def recursive_loop(context: NodeContext, loop: Loop) -> LoopResult:
    """Import the loop as functions; refuses a state whose kind or rank changes."""
    structures = [structure_of(value) for value in loop.state]
    initial = [tensor for value in loop.state for tensor in tensors_in(value)]
    state = State(structures, initial, [set() for _ in initial])
    trips = None if loop.trips is None else _counter(context, loop.trips)
    body = fitting_body(context, loop, state, trips)
    if trips is None and not body.ends_early:
        context.refuse("it has neither a number of iterations nor a condition that can end it")
    return _Recursion(context, loop, state, body).emit(trips)


def _counter(context: NodeContext, value: object) -> relax.Expr:
    """Return a number of iterations as an int64 scalar."""
    assert isinstance(value, (Constant, Symbolic, Runtime))
    expr = scalar_condition(context, materialized(context, value))
    return expr if str(expr.ty.dtype) == "int64" else context.emit(R.astype(expr, "int64"))


class _Recursion:
    """The function that runs the body up to 2**level times, and its call."""

    def __init__(self, context: NodeContext, loop: Loop, state: State, body: Body) -> None:
        self.context, self.loop, self.state, self.body = context, loop, state, body
        self.builder = context.importer.builder
        self.carried = state.carried()
        self.state_types = state.types(context)
        self.count = self._iterations() if body.element_shapes else None
        self.expressions = self._expressions()
        self.sizes = self._sizes()
        self.template = self._declared()
        declared = self.template.with_attr("declared", self.builder.unique_name("loop"))
        self.variable = self.builder.block_builder.add_func(declared, self.builder.unique_name("loop"))
        self.renamed = dict(zip(self.sizes, self._holder_values(), strict=True))
        (renamed,) = self.template.body.body.fields
        self.renamed.update(zip(self.expressions, renamed.values, strict=True))

    def _element_shape(self, index: int) -> list[Dim | None]:
        """Return the shape of an element; None for a size known only inside the body."""
        return [d if self.builder.size_is_visible(d) else None for d in self.body.element_shapes[index]]

    def _expressions(self) -> list[tvm.ir.Expr]:
        """Return symbolic sizes in the shapes of state and elements that are known outside the loop."""
        shapes: list[Sequence[Dim | None]] = [
            [d for axis, d in enumerate(tensor.shape) if axis not in self.state.varying[index]]
            for index, tensor in enumerate(self.state.initial)
        ]
        shapes += [self._element_shape(index) for index in range(len(self.body.element_shapes))]
        return list(dict.fromkeys(d for shape in shapes for d in shape if d is not None and not isinstance(d, int)))

    def _sizes(self) -> list[tvm.ir.Expr]:
        """Return every symbolic size of the enclosing code that the function needs."""
        captures = [tensor_shape(v) for v in self.body.function.captures if isinstance(v.ty, relax.TensorType)]
        sizes: dict[tvm.ir.Expr, None] = dict.fromkeys(self.body.function.sizes)
        for dim in [*self.expressions, *(d for shape in captures for d in shape if not isinstance(d, int))]:
            sizes.update(dict.fromkeys(tirx.analysis.undefined_vars(dim)))
        return list(sizes)

    def _declared(self) -> relax.Function:
        """Return the function without its code: its own parameters, and its result type."""
        captures = [tvm.ir.Var(v.name, v.ty) for v in self.body.function.captures]
        parameters = [
            tvm.ir.Var("level", COUNTER),
            tvm.ir.Var("iteration", COUNTER),
            *(tvm.ir.Var("state", ty) for ty in self.state_types),
            *captures,
            *([size_holder(self.sizes)] if self.sizes else []),
            *([] if self.count is None else [tvm.ir.Var("count", relax.ShapeType([tirx.Var("count", "int64")]))]),
        ]
        states = [
            relax.TensorType(ndim=len(ty.shape), dtype=ty.dtype) if self.state.varying[index] else ty
            for index, ty in zip(self.carried, self.state_types, strict=True)
        ]
        stacks = [
            relax.TensorType(ndim=len(shape) + 1, dtype=carrier(dtype))
            for shape, dtype in zip(self.body.element_shapes, self.body.element_dtypes, strict=True)
        ]
        result = relax.TupleType([COUNTER, _FLAG, *states, *stacks])
        # The body only serves to have the shapes renamed as well.
        body = relax.SeqExpr([], relax.Tuple([relax.ShapeExpr(self.expressions)]))
        return relax.utils.copy_with_new_vars(relax.Function(parameters, body, result, is_pure=True))

    def _holder_values(self) -> list[tvm.ir.Expr]:
        index = -1 if self.count is None else -2
        return list(self.template.params[index].ty.values) if self.sizes else []

    def emit(self, trips: relax.Expr | None) -> LoopResult:
        """Define the function and call it."""
        self._define()
        context, loop = self.context, self.loop
        initial = [materialized(context, self.state.initial[index]) for index in self.carried]
        zero = relax.const(0, "int64")
        holder = [relax.ShapeExpr(self.sizes)] if self.sizes else []
        count = [] if self.count is None else [relax.ShapeExpr([expression(self.count)])]
        arguments = [_level(context, trips), zero, *initial, *self.body.function.captures, *holder, *count]
        call = relax.Call(self.variable, arguments)
        shapes = self._result_shapes()
        start = self._start(trips)
        if start is None:
            results = fields(context, context.block_builder.emit(call), shapes)
        else:
            empty = [
                empty_stack(context, [0 if d is None else d for d in self._element_shape(index)], dtype)
                for index, dtype in enumerate(self.body.element_dtypes)
            ]
            nothing = relax.Tuple([zero, relax.const(False, "bool"), *initial, *empty])
            results = choose(context, start, call, nothing, shapes)
        carried = dict(zip(self.carried, results[2:], strict=False))
        tensors: list[Tensor] = [
            Runtime(carried[index], tensor.dtype, loop.sources) if index in carried else tensor
            for index, tensor in enumerate(self.state.initial)
        ]
        supply = iter(tensors)
        stacks = zip(results[2 + len(carried) :], self.body.element_dtypes, strict=True)
        return LoopResult(
            [rebuild(structure, supply) for structure in self.state.structures],
            [Runtime(expr, dtype, loop.sources) for expr, dtype in stacks],
        )

    def _result_shapes(self) -> list[list[Dim]]:
        context = self.context
        states = [self.state.shape(context, index) for index in self.carried]
        stacks = [
            [context.dimension("iterations") if self.count is None else self.count, *self._filled(index)]
            for index in range(len(self.body.element_shapes))
        ]
        return [[], [], *states, *stacks]

    def _filled(self, index: int) -> list[Dim]:
        return [self.context.dimension() if d is None else d for d in self._element_shape(index)]

    def _iterations(self) -> Dim | None:
        """Return the number of iterations, or None if unknown."""
        if self.body.ends_early or (self.loop.go is not None and known_scalar(self.loop.go) is None):
            return None
        if isinstance(self.loop.trips, Constant):
            return max(known_scalar(self.loop.trips) or 0, 0)
        if isinstance(self.loop.trips, Symbolic):
            (count,) = self.loop.trips.array.reshape(-1)
            return self.context.arithmetic.maximum(count, 0)
        return None

    def _start(self, trips: relax.Expr | None) -> relax.Expr | None:
        """Return the condition for the first iteration; None if it always runs."""
        context, go = self.context, self.loop.go
        conditions = []
        if trips is not None and (known_scalar(self.loop.trips) or 0) <= 0:
            conditions.append(context.emit(R.greater(trips, relax.const(0, "int64"))))
        if go is not None and known_scalar(go) is None:
            assert isinstance(go, (Symbolic, Runtime))
            conditions.append(scalar_condition(context, materialized(context, go)))
        if len(conditions) == 2:
            return context.emit(R.logical_and(*conditions))
        return conditions[0] if conditions else None

    def _define(self) -> None:
        builder, bb = self.builder, self.builder.block_builder
        parameters = list(self.template.params)
        level, iteration = parameters[:2]
        states = parameters[2 : 2 + len(self.carried)]
        with builder.sizes_scope(), function_body(builder, parameters) as code:
            at_bottom = bb.emit(R.equal(level, relax.const(0, "int64")))
            with builder.region() as once:
                leaf = bb.emit(self._once(iteration, states))
            with builder.region() as twice:
                many = bb.emit(self._twice(level, iteration, states))
            code.append(bb.emit(relax.If(at_bottom, relax.SeqExpr(once, leaf), relax.SeqExpr(twice, many))))
        function = relax.Function(parameters, code[-1], self.template.ret_ty, is_pure=True)
        loop = [len(self.carried), int(self.count is not None)]
        bb.update_func(self.variable, function.with_attr(LOOP, loop))

    def _once(self, iteration: relax.Expr, states: Sequence[relax.Expr]) -> relax.Expr:
        """Run one iteration; its elements become stacks of one."""
        function = self.body.function
        captures = self.template.params[2 + len(states) : 2 + len(states) + len(function.captures)]
        sizes = [self.renamed[size] for size in function.sizes]
        result = self.context.block_builder.emit(function.call_with([iteration, *states], captures, sizes))
        shapes = [[], [], *self._inner_states(), *self._inner_elements()]
        results = fields(self.context, result, shapes)
        head = 2 + len(states)
        stacks = [self.context.emit(R.expand_dims(element, [0])) for element in results[head:]]
        return relax.Tuple([*results[:head], *stacks])

    def _twice(self, level: relax.Expr, iteration: relax.Expr, states: Sequence[relax.Expr]) -> relax.Expr:
        """Run half of the iterations, then the other half unless the loop has ended."""
        builder, bb = self.builder, self.builder.block_builder
        below = bb.emit(R.subtract(level, relax.const(1, "int64")))
        first = self._call(below, iteration, states, self._inner_elements())
        head = 2 + len(states)
        with builder.region() as again:
            # Elements of equal shape: checked by the cast to the shape of the first half.
            second = self._call(below, first[0], first[2:head], [tensor_shape(stack)[1:] for stack in first[head:]])
            halves = zip(first[head:], second[head:], strict=True)
            joined = [bb.emit(R.concat([left, right], 0)) for left, right in halves]
            both = bb.emit(relax.Tuple([*second[:head], *joined]))
        return relax.If(first[1], relax.SeqExpr(again, both), relax.Tuple(first))

    def _call(
        self,
        level: relax.Expr,
        iteration: relax.Expr,
        states: Sequence[relax.Expr],
        elements: Sequence[Sequence[Dim]],
    ) -> list[relax.Expr]:
        trailing = self.template.params[2 + len(states) :]
        if self.sizes:
            held = len(trailing) - 1 - (self.count is not None)
            trailing = [*trailing[:held], relax.ShapeExpr(self._holder_values()), *trailing[held + 1 :]]
        result = self.context.block_builder.emit(relax.Call(self.variable, [level, iteration, *states, *trailing]))
        stacks = [[self.context.dimension("iterations"), *shape] for shape in elements]
        return fields(self.context, result, [[], [], *self._inner_states(), *stacks])

    def _inner_states(self) -> list[list[Dim]]:
        """Return shapes of the state in terms of the function's own sizes."""
        return [[self._inner(d) for d in self.state.shape(self.context, index)] for index in self.carried]

    def _inner_elements(self) -> list[list[Dim]]:
        return [[self._inner(d) for d in self._filled(index)] for index in range(len(self.body.element_shapes))]

    def _inner(self, dim: Dim) -> Dim:
        return dim if isinstance(dim, int) else self.renamed.get(dim, dim)


def _level(context: NodeContext, trips: relax.Expr | None) -> relax.Expr:
    """Return the lowest level at which 2**level iterations suffice."""
    if trips is None:
        return relax.const(_HIGHEST_LEVEL, "int64")
    powers = Constant(2 ** np.arange(_HIGHEST_LEVEL, dtype=np.int64)).expr()
    if isinstance(trips, tvm.ir.GenericConst):
        count = int(trips.value.numpy())
        return relax.const(min(max(count - 1, 0).bit_length(), _HIGHEST_LEVEL), "int64")
    below = context.emit(R.less(powers, context.reshape(trips, (1,))))
    return context.emit(R.sum(context.emit(R.astype(below, "int64")), axis=[0]))
