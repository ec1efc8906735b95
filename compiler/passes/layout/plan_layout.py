"""plan-layout: put convolutions and the operators between them in blocked layouts, with weights packed at compile time.

Every value of a dataflow block has a plain form, a blocked one (channels in blocks as wide as a vector register, the
block innermost), or both, each made on first use. Convolutions return blocked results; operators that support blocked
operands use them if an operand is blocked; all others, and the block's outputs, get plain operands. So conversions
occur only at region boundaries, once per value. A function without a convolution is unchanged.

The values that use blocked layouts are chosen per dataflow block by a minimum cut. Convolutions read and return blocked
values, most other operators support only plain ones, and elementwise operators support either. The label of a value,
blocked or plain, costs the bytes its conversions copy: a blocked value with a plain reader is unpacked once, a plain
value with a blocked reader is packed once. The cheapest labels are a minimum cut between the convolutions and the
operators on plain values. Ties are broken towards blocked values, whose operators fuse with convolution kernels.
Operators that move data are free in blocked layouts if they move whole blocks or nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf, prod

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.layout import convolution, kernels, pooling, transposed  # noqa: F401
from compiler.passes.layout.kernels import ELEMENTWISE
from compiler.passes.layout.values import ANCHORS, HANDLERS, NARROW_READERS, Blocked, LayoutBuilder, Value, handles
from compiler.passes.layout.windows import PoolWindow
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import count_uses, operator_name, rewritable_functions, with_body
from compiler.passes.rewriting.matching import dtype_of, plain, same_shape, shape_of
from schedules.instructions.dot_products.operation import HALVES
from schedules.ir.tvm_types import Binding, BindingBlock, Call, Expr, Function, Index, Var


@graph_pass(
    "plan-layout", summary="Lay out convolution regions in blocks of channels and pack their weights", only="processor"
)
def plan_layout(mod: IRModule, context: PipelineContext) -> IRModule:
    machine = context.machine
    if machine is None:
        return mod
    functions = [(var, function) for var, function in rewritable_functions(mod) if _has_anchor(function)]
    if not functions:
        return mod
    builder = relax.BlockBuilder(mod)
    halves = HALVES.get(context.options.precision)

    def layout() -> LayoutBuilder:
        return LayoutBuilder(builder, mod, machine, context.expansions, halves=halves, choose=context.choose)

    planned = {var: _plan(function, layout()) for var, function in functions}
    result = builder.get()
    for var, function in planned.items():
        result.update_func(var, function)
    return relax.transform.DeadCodeElimination()(relax.transform.Normalize()(result))


def _has_anchor(function: Function) -> bool:
    body = function.body
    return isinstance(body, relax.SeqExpr) and any(
        operator_name(binding.value) in ANCHORS
        for block in body.blocks
        if isinstance(block, relax.DataflowBlock)
        for binding in block.bindings
    )


def _plan(function: Function, builder: LayoutBuilder) -> Function:
    if builder.halves is not None:
        builder.wanted_narrow = _wanted_narrow(function)
    blocks = [
        _plan_block(block, builder) if isinstance(block, relax.DataflowBlock) else block
        for block in function.body.blocks
    ]
    body = relax.SeqExpr(blocks, function.body.body, function.body.span)
    return with_body(function, body)


def _wanted_narrow(function: Function) -> set[Expr]:
    """Return the variables that some operator reads in 16 bits."""
    counts: dict[Var, int] = {}
    readers: dict[Var, list[str]] = {}
    count_uses(function.body, counts, readers)
    return {variable for variable, names in readers.items() if not NARROW_READERS.isdisjoint(names)}


def _plan_block(block: BindingBlock, builder: LayoutBuilder) -> BindingBlock:
    builder.forget_block()
    builder.kept_plain = plain_values(block, lambda call: _averages(call, builder))
    for binding in block.bindings:
        if isinstance(binding, relax.MatchCast):
            operand = builder.plain(binding.value)
            builder.bindings.append(relax.MatchCast(binding.var, operand, binding.ty, binding.span))
            continue
        _plan_binding(binding, builder)
    return relax.DataflowBlock(builder.bindings, block.span)


def _averages(call: Call, builder: LayoutBuilder) -> bool:
    """True for a call of a kernel that averages over windows."""
    return operator_name(call) == "relax.call_tir" and PoolWindow.of(builder.function(call.args[0])) is not None


def _plan_binding(binding: Binding, builder: LayoutBuilder) -> None:
    value = binding.value
    builder.start_binding(binding.var, value)
    answer = None if binding.var in builder.kept_plain else _answer(value, builder)
    if isinstance(answer, Blocked):
        answer = _value_of(answer, binding.var, builder)
    if isinstance(binding.var, relax.DataflowVar):
        if answer is not None:
            builder.define(binding.var, answer)
            return
    elif answer is not None:
        value = builder.plain_value(answer)
        builder.bindings.append(relax.VarBinding(binding.var, value))
        return
    builder.bindings.append(relax.VarBinding(binding.var, _on_plain(value, builder)))


def _value_of(blocked: Blocked, variable: Var, builder: LayoutBuilder) -> Value:
    """Return a result, in 16 bits if a reader wants it; rounding is then the last step of the producing kernel."""
    if blocked.narrow:
        return Value(narrow=blocked)
    if variable in builder.wanted_narrow and dtype_of(blocked.expr) == "float32":
        return Value(narrow=builder.narrowed(blocked))
    return Value(blocked=blocked)


def _answer(value: Expr, builder: LayoutBuilder) -> Blocked | Value | None:
    if isinstance(value, relax.Var):
        return builder.value(value)
    if isinstance(value, relax.TupleGetItem):
        parts = builder.value(value.tuple_value).parts
        return parts[int(value.index)] if parts is not None else None
    if isinstance(value, relax.Tuple):
        return Value(parts=[builder.value(each) for each in value.fields])
    handler = HANDLERS.get(operator_name(value) or "")
    return handler(builder, value) if handler is not None else None


def _on_plain(value: Expr, builder: LayoutBuilder) -> Expr:
    """Return the same expression on plain operands."""
    if isinstance(value, relax.Call):
        arguments = [_plain_operand(each, builder) for each in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args, value.span, ret_ty=value.ty)
    return _plain_operand(value, builder)


def _plain_operand(value: Expr, builder: LayoutBuilder) -> Expr:
    if isinstance(value, relax.Var):
        return builder.plain(value)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_plain_operand(each, builder) for each in value.fields], value.span)
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(builder.plain(value.tuple_value), value.index)
    return value


_FOLLOWING = frozenset(
    {*ELEMENTWISE, "relax.call_tir", "relax.permute_dims", "relax.astype", "relax.quantize", "relax.dequantize"}
)
"""Operators whose result has the layout of their operands of the same shape."""
_WINDOWS = frozenset(
    {
        *(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        *(f"relax.nn.adaptive_{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        "relax.concat",
        "relax.strided_slice",
        "relax.nn.pad",
    }
)
"""Operators that read blocked values of other shapes directly, and then return blocked ones."""
_SOME = 64  # assumed extent of an unknown dimension
_BLOCKED, _PLAIN = "blocked", "plain"


class Cut:
    """Minimum cut of a directed graph between two nodes, by shortest augmenting paths."""

    def __init__(self) -> None:
        self._room: dict[Hashable, dict[Hashable, float]] = {}

    def edge(self, source: Hashable, target: Hashable, cost: float) -> None:
        """Add the cost of having `source` on the first side and `target` on the second."""
        ahead = self._room.setdefault(source, {})
        ahead[target] = ahead.get(target, 0.0) + cost
        self._room.setdefault(target, {}).setdefault(source, 0.0)

    def second_side(self, source: Hashable, sink: Hashable) -> set[Hashable]:
        """Return the nodes on the side of `sink`, in the minimum cut with the fewest of them."""
        while path := self._path(source, sink):
            least = min(self._room[a][b] for a, b in path)
            for a, b in path:
                self._room[a][b] -= least
                self._room[b][a] += least
        return self._reaching(sink)

    def _path(self, source: Hashable, sink: Hashable) -> list[tuple[Hashable, Hashable]]:
        came: dict[Hashable, Hashable] = {source: source}
        queue = deque([source])
        while queue and sink not in came:
            node = queue.popleft()
            for neighbor, room in self._room.get(node, {}).items():
                if room > 0 and neighbor not in came:
                    came[neighbor] = node
                    queue.append(neighbor)
        path = []
        node = sink
        while node in came and node != source:
            path.append((came[node], node))
            node = came[node]
        return path if sink in came else []

    def _reaching(self, sink: Hashable) -> set[Hashable]:
        reached = {sink}
        queue = deque([sink])
        while queue:
            node = queue.popleft()
            for neighbor in self._room.get(node, {}):
                if neighbor not in reached and self._room[neighbor][node] > 0:
                    reached.add(neighbor)
                    queue.append(neighbor)
        return reached


def plain_values(block: BindingBlock, is_window: Callable[[Call], bool] = lambda _: False) -> set[Var]:
    """Return the variables of elementwise results that should be plain although an operand may be blocked.

    `is_window`: True for kernel calls that slide a window over their first operand, like the operators of `_WINDOWS`.
    """
    calls = {binding.var: binding.value for binding in block.bindings if isinstance(binding.value, relax.Call)}
    if not any(operator_name(call) in ANCHORS for call in calls.values()):
        return set()
    cut = Cut()
    for var, call in calls.items():
        _add_costs(cut, var, call, calls, is_window)
    for binding in block.bindings:
        if binding.var not in calls:
            _require(cut, _operands(binding.value, calls), _PLAIN)
        if not isinstance(binding.var, relax.DataflowVar):
            _require(cut, [binding.var], _PLAIN)
    second = cut.second_side(_BLOCKED, _PLAIN)
    return {
        var
        for var, call in calls.items()
        if var in second
        and operator_name(call) in _FOLLOWING
        and not is_window(call)
        and _alike(call, _operands(call, calls), calls)
    }


def _add_costs(cut: Cut, var: Var, call: Call, calls: Mapping[Var, Call], is_window: Callable[[Call], bool]) -> None:
    """Add the costs of a value's conversions, and its operator's requirements."""
    shape, name = shape_of(call), operator_name(call)
    elements = prod(size if isinstance(size, int) else _SOME for size in shape) if shape is not None else 0
    cut.edge(var, ("unpacked", var), elements)
    cut.edge(("packed", var), var, elements)
    operands = _operands(call, calls)
    if name in ANCHORS:
        cut.edge(_BLOCKED, var, inf)
        _require(cut, operands[:1], _BLOCKED)
        return
    alike = operands[:1] if is_window(call) else _alike(call, operands, calls)
    if not alike:
        cut.edge(var, _PLAIN, inf)
        if name not in _FOLLOWING and name != "relax.split":
            _require(cut, operands, _PLAIN)
    for operand in alike:
        cut.edge(("unpacked", operand), var, inf)
        cut.edge(var, ("packed", operand), inf)


def _alike(call: Call, operands: list[Var], calls: Mapping[Var, Call]) -> list[Var]:
    """Return the operands that determine the layout of a call's result."""
    name, shape = operator_name(call), shape_of(call)
    if shape is None:
        return []
    if name in _WINDOWS or name == "relax.permute_dims":
        return operands
    if name in ("relax.mean", "relax.max"):
        rank = len(shape_of(call.args[0]) or ())
        return operands if call.attrs.axis is not None and rank - len(call.attrs.axis) == 2 else []
    return [each for each in operands if _of_shape(calls[each], shape)] if name in _FOLLOWING else []


def _of_shape(call: Call, shape: Sequence[Index]) -> bool:
    own = shape_of(call)
    return own is not None and same_shape(own, shape)


def _require(cut: Cut, operands: Iterable[Var], side: str) -> None:
    for operand in operands:
        if side == _PLAIN:
            cut.edge(("unpacked", operand), _PLAIN, inf)
        else:
            cut.edge(_BLOCKED, ("packed", operand), inf)


def _operands(value: Expr, calls: Mapping[Var, Call]) -> list[Var]:
    """Return the results of calls in this block that an expression reads, in order."""
    operands: list[Var] = []

    def visit(expr: Expr) -> None:
        if isinstance(expr, relax.Var):
            if expr in calls:
                operands.append(expr)
        elif isinstance(expr, relax.Call):
            for argument in expr.args:
                visit(argument)
        elif isinstance(expr, relax.Tuple):
            for argument in expr.fields:
                visit(argument)
        elif isinstance(expr, relax.TupleGetItem):
            visit(expr.tuple_value)

    visit(value)
    return operands


@handles("relax.permute_dims")
def permute(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Permute the logical axes without moving data."""
    data = builder.stored(call.args[0])
    shape = shape_of(call)
    if data is None or shape is None:
        return None
    axes_of_call = call.attrs.axes
    rank = len(data.shape)
    axes = [int(axis) % rank for axis in axes_of_call] if axes_of_call is not None else list(reversed(range(rank)))
    order = tuple(axes.index(axis) for axis in data.order)
    return Blocked(data.expr, tuple(shape), order, data.narrow)


@handles("relax.concat")
def concat(builder: LayoutBuilder, call: Call) -> Blocked | None:
    operands = call.args[0]
    fields = list(operands.fields) if isinstance(operands, relax.Tuple) else None
    shape = shape_of(call)
    if fields is None or shape is None or call.attrs.axis is None:
        return None
    parts = [builder.stored(each) for each in fields]
    if any(part is not None and part.narrow for part in parts) and not all(
        part is not None and part.narrow for part in parts
    ):
        parts = [builder.blocked(each) for each in fields]
    first = next((part for part in parts if part is not None), None)
    if first is None or any(part is None or part.order != first.order for part in parts):
        return None
    axis = first.order.index(int(call.attrs.axis) % len(shape))
    blocked = [part for part in parts if part is not None]
    if axis == 1 and any(part.channels % builder.lanes for part in blocked[:-1]):
        return None
    result = builder.emit(relax.op.concat([part.expr for part in blocked], axis), "joined")
    return Blocked(result, tuple(shape), first.order, first.narrow)


@handles("relax.split")
def split(builder: LayoutBuilder, call: Call) -> Value | None:
    """Split channels at whole blocks, or any spatial dimension."""
    data = builder.stored(call.args[0])
    if data is None:
        return None
    axis = data.order.index(int(call.attrs.axis) % len(data.shape))
    size = data.shape[data.order[axis]] if axis > 0 else 0
    if not isinstance(size, int):
        return None
    sections = call.attrs.indices_or_sections
    if isinstance(sections, int) or not hasattr(sections, "__len__"):
        count = int(sections)
        if size == 0 or size % count:
            return None
        edges = [size // count * i for i in range(1, count)]
    else:
        edges = [int(edge) for edge in sections]
    if axis == 0 or (axis == 1 and any(edge % builder.lanes for edge in edges)):
        return None
    scale = builder.lanes if axis == 1 else 1
    bounds = [0, *edges, size]
    parts = []
    for start, stop in pairwise(bounds):
        last = -(-stop // scale)
        piece = relax.op.strided_slice(data.expr, [axis], [start // scale], [last])
        shape = list(data.shape)
        shape[data.order[axis]] = stop - start
        part = Blocked(builder.emit(piece, "part"), tuple(shape), data.order, data.narrow)
        parts.append(Value(narrow=part) if data.narrow else Value(blocked=part))
    return Value(parts=parts)


@handles("relax.reshape")
def reshape(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Drop a reshape to the same shape."""
    data = builder.stored(call.args[0])
    shape = shape_of(call)
    if data is None or shape is None or not same_shape(list(data.shape), shape):
        return None
    return data


@handles("relax.strided_slice")
def cut(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Slice spatial dimensions, and channels at whole blocks, without strides."""
    data = builder.stored(call.args[0])
    shape, bounds = shape_of(call), _bounds(call)
    if data is None or shape is None or bounds is None:
        return None
    axes, starts, stops = [], [], []
    for axis, (start, stop) in bounds.items():
        index = data.order.index(axis)
        scale = builder.lanes if index == 1 else 1
        if index == 0 or start % scale or (stop % scale and stop != data.shape[axis]):
            return None
        axes.append(index)
        starts.append(start // scale)
        stops.append(-(-stop // scale))
    result = builder.emit(relax.op.strided_slice(data.expr, axes, starts, stops), "part")
    return Blocked(result, tuple(shape), data.order, data.narrow)


def _bounds(call: Call) -> dict[int, tuple[int, int]] | None:
    """Return (start, stop) per axis of a slice without strides, within known sizes."""
    shape = shape_of(call.args[0])
    fields = [[plain(each) for each in getattr(argument, "fields", ())] for argument in list(call.args)[1:]]
    if shape is None or not all(isinstance(each, int) for field in fields for each in field):
        return None
    if len(fields) > 3 and any(step != 1 for step in fields[3]):
        return None
    bounds = {}
    for axis, start, stop in zip(*fields[:3], strict=True):
        size = shape[axis % len(shape)]
        if not isinstance(size, int) or not 0 <= start < min(stop, size):
            return None
        bounds[axis % len(shape)] = (start, min(stop, size))
    return bounds


@handles("relax.nn.pad")
def pad(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Pad spatial dimensions with zeros."""
    data = builder.stored(call.args[0])
    shape = shape_of(call)
    if data is None or shape is None or str(call.attrs.pad_mode) != "constant" or float(call.attrs.pad_value) != 0:
        return None
    pad_width = [int(width) for width in call.attrs.pad_width]
    pairs = [pad_width[2 * axis : 2 * axis + 2] for axis in data.order]
    if any(pairs[0]) or any(pairs[1]) or min(pad_width) < 0:
        return None
    widths = [width for pair in [*pairs, [0, 0]] for width in pair]
    return Blocked(builder.emit(relax.op.nn.pad(data.expr, widths), "padded"), tuple(shape), data.order, data.narrow)
