"""Generates one kernel for a loop: a workspace for the tensors of a step, and calls of the step's kernels in sequence.

Steps are calls of kernels, copies and branches on tensors whose sizes do not change in the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst, GlobalVar, IRModule
from tvm_ffi import structural_equal

from compiler.passes.memory.liveness import ALIGNMENT, Lifetime, assign
from compiler.passes.rewriting.graph import operator_name
from schedules.annotations import CALLS, LOOP
from schedules.codegen.nest import allocate, load, sequence, store
from schedules.ir.expression import index, substitute
from schedules.ir.stages import dtype_of
from schedules.ir.tir import structural_map
from schedules.ir.tvm_types import Binding, Call, Expr, Function, Index, PrimFunc, SeqExpr, Stmt, Type, Var
from schedules.machine import dtype_bits

_MIN_BYTES = 1 << 10  # TVM puts smaller buffers on the stack, without 64-byte alignment
_SYMBOL = "__tvm_ffi_"  # prefix of kernel symbols


@dataclass
class LoopForm:
    """A loop in terms of steps.

    Attributes:
        steps: the steps of one iteration.
        iteration: the iteration number, an int64 scalar that steps read.
        state: the tensors of the state that steps read.
        following: the tensors of the state after the steps, in the order of `state`.
        go: the condition to continue; None: always.
        elements: the row that the iteration adds to each stack.
        rows: capacity of the stacks in iterations; None without stacks.
        given: the loop's inputs: the level, the first iteration, the state before it, and the tensors that steps read.
    """

    steps: list[Step]
    iteration: Tensor
    state: list[Tensor]
    following: list[View]
    go: View | None
    elements: list[View]
    rows: Index | None
    initial: list[Tensor]
    level: Tensor | None
    first: Tensor
    given: list[Tensor] = field(default_factory=list)


def size_of(shape: Sequence[Expr]) -> Expr:
    """Number of elements."""
    total: Expr = index(1, "int64")
    for each in shape:
        total = total * each
    return total


def bytes_of(shape: Sequence[Expr], dtype: str) -> Index:
    """Size of a tensor in bytes: an int if its shape is static."""
    width = (dtype_bits(dtype) + 7) // 8
    if all(isinstance(each, tirx.IntImm) for each in shape):
        total = width
        for size in shape:
            total *= int(size)
        return total
    return size_of(shape) * index(width, "int64")


def _rounded(size: Index) -> Index:
    """Bytes rounded up to full cache lines."""
    if isinstance(size, int):
        return -(-size // ALIGNMENT) * ALIGNMENT
    return tirx.floordiv(size + (ALIGNMENT - 1), index(ALIGNMENT, "int64")) * ALIGNMENT


class LoopKernel:
    """Writes the kernel of a `LoopForm`.

    Its parameters: `form.given`, the symbolic sizes, then its results: the number of the next iteration, whether one
    follows, the state, the stacks, and how many iterations ran.
    """

    def __init__(self, form: LoopForm) -> None:
        self.form = form
        self._buffers = {
            each: _buffer(f"given{position}", each.shape, each.dtype) for position, each in enumerate(form.given)
        }
        rows = [] if form.rows is None else [index(form.rows, "int64") if isinstance(form.rows, int) else form.rows]
        self.result_types = [
            relax.TensorType([], "int64"),
            relax.TensorType([], "bool"),
            *(relax.TensorType(each.shape, each.dtype) for each in form.state),
            *(relax.TensorType([*rows, *each.shape], each.tensor.dtype) for each in form.elements),
            relax.TensorType([1], "int64"),
        ]
        self._results = [
            _buffer(f"result{position}", list(ty.shape.values), str(ty.dtype))
            for position, ty in enumerate(self.result_types)
        ]
        self._step, self._allocate_step = allocate("step", (1,), "int64")
        self._number, self._allocate_number = allocate("number", (1,), "int64")
        self._going, self._allocate_going = allocate("going", (1,), "int64")
        self._half: dict[Tensor, tuple[Index, int]] = {}  # for state tensors: offset, and the half that holds it
        self._offsets: dict[Tensor, Index] = {}
        self._stacked: dict[Tensor, int] = {}
        self._total: Index = 0
        self._plan()
        total = max(self._total, _MIN_BYTES) if isinstance(self._total, int) else self._total + _MIN_BYTES
        self._work = _buffer("work", [total], "uint8")

    @property
    def _stacks(self) -> list[Expr]:
        return self._results[2 + len(self.form.state) : -1]

    def _take(self, size: Index) -> Index:
        """Allocate bytes in the workspace; return their offset."""
        begin, self._total = self._total, self._total + _rounded(size)
        return begin

    def _plan(self) -> None:
        """Assign each tensor an offset in the workspace."""
        form = self.form
        sizes = [bytes_of(each.shape, each.dtype) for each in form.state]
        begins = [self._take(2 * _rounded(size)) for size in sizes]
        self._sizes = sizes
        self._begins = begins
        for position, tensor in enumerate(form.state):
            self._half[tensor] = position, 0
        written = list(_written(form.steps))
        for position, view in enumerate(form.following):
            if view.tensor in written and view.tensor not in self._half:
                self._half[view.tensor] = position, 1
        for position, view in enumerate(form.elements):
            size = bytes_of(view.shape, view.tensor.dtype)
            whole = isinstance(size, int) and size % ALIGNMENT == 0
            if whole and view.tensor in written and not self._is_placed(view.tensor):
                self._stacked[view.tensor] = position
        free = [each for each in written if not self._is_placed(each)]
        lives = _lifetimes(form)
        known = [(each, bytes_of(each.shape, each.dtype)) for each in free]
        fixed = [(each, size) for each, size in known if isinstance(size, int)]
        chosen, room = assign([Lifetime(size, *lives[each]) for each, size in fixed], {})
        begins = [self._take(size) for size in room]
        self._offsets.update({each: begins[at] for (each, _), at in zip(fixed, chosen, strict=True)})
        self._offsets.update({each: self._take(size) for each, size in known if not isinstance(size, int)})

    def _is_placed(self, tensor: Tensor) -> bool:
        return tensor in self._half or tensor in self._stacked

    def _address(self, tensor: Tensor) -> Expr:
        """Address of a tensor of the current iteration."""
        if tensor in self._buffers:
            return tirx.buffer_data(self._buffers[tensor])
        if tensor is self.form.iteration:
            return tirx.buffer_data(self._number)
        if tensor in self._stacked:
            return self._row_address(self._stacked[tensor])
        if tensor in self._half:
            return self._half_address(*self._half[tensor])
        return self._at(self._offsets[tensor])

    def _row_address(self, position: int) -> Expr:
        """Address of the current iteration's row in a stack."""
        stack = self._stacks[position]
        return tirx.address_of(load(stack, load(self._step, 0), *[0] * (len(stack.ty.shape) - 1)))

    def _at(self, offset: Index) -> Expr:
        return tirx.address_of(load(self._work, offset))

    def _half_address(self, position: int, half: int) -> Expr:
        """Address of the state before the current iteration (0) or after it (1), which are double-buffered."""
        parity = tirx.bitwise_and(load(self._step, 0) + half, index(1, "int64"))
        return self._at(self._begins[position] + parity * _rounded(self._sizes[position]))

    def _flag(self, tensor: Tensor) -> Expr:
        """Load a bool."""
        if tensor in self._buffers:
            return load(self._buffers[tensor], *[0] * len(tensor.shape))
        position = self._address(tensor)  # address_of(work[...])
        return tirx.NE(position.args[0], tirx.const(0, "uint8"))

    def function(self) -> tuple[PrimFunc, list[Var]]:
        """Return the kernel, and the symbolic sizes that it takes as parameters."""
        form, states = self.form, self._results[2 : 2 + len(self.form.state)]
        begin = [
            self._allocate_step,
            self._allocate_number,
            self._allocate_going,
            tirx.AllocBuffer(self._work),
            store(self._step, index(0, "int64"), 0),
            store(self._number, load(self._buffers[form.first]), 0),
            store(self._going, index(1, "int64"), 0),
            *(
                _copy(self._half_address(position, 0), self._address(each), self._sizes[position])
                for position, each in enumerate(form.initial)
            ),
        ]
        goes_on = tirx.NE(load(self._going, 0), index(0, "int64"))
        loop = tirx.While(tirx.all(goes_on, load(self._step, 0) < self._limit()), self._iteration())
        end = [
            store(self._results[0], load(self._number, 0)),
            store(self._results[1], goes_on),
            store(self._results[-1], load(self._step, 0), 0),
            *(
                _copy(tirx.buffer_data(result), self._half_address(position, 0), self._sizes[position])
                for position, result in enumerate(states)
            ),
        ]
        body = sequence(*begin, loop, *end)
        operands = list(self._buffers.values())
        numbers = _sizes_of([*operands, *self._results], body)
        function = _with_own_sizes([*operands, *numbers, *self._results], body)
        attributes = {CALLS: sorted(set(_names(form.steps))), "tirx.is_scheduled": True, "tirx.noalias": True}
        return function.with_attrs(attributes), numbers

    def _limit(self) -> Expr:
        """The maximum number of iterations."""
        form = self.form
        limits = [] if form.rows is None else [index(form.rows, "int64") if isinstance(form.rows, int) else form.rows]
        if form.level is not None:
            limits.append(tirx.shift_left(index(1, "int64"), load(self._buffers[form.level])))
        return limits[0] if len(limits) == 1 else tirx.min(*limits)

    def _iteration(self) -> Stmt:
        form = self.form
        parts = [self._run(each) for each in form.steps]
        for position, view in enumerate(form.following):
            if self._half.get(view.tensor) != (position, 1):
                parts.append(_copy(self._half_address(position, 1), self._address(view.tensor), self._sizes[position]))
        for position, view in enumerate(form.elements):
            if self._stacked.get(view.tensor) != position:
                to = self._row_address(position)
                parts.append(_copy(to, self._address(view.tensor), bytes_of(view.shape, view.tensor.dtype)))
        if form.go is not None:
            parts.append(store(self._going, tirx.Cast("int64", self._flag(form.go.tensor)), 0))
        parts += [store(each, load(each, 0) + 1, 0) for each in (self._step, self._number)]
        return sequence(parts)

    def _run(self, step: Step) -> Stmt:
        if isinstance(step, Copy):
            return _copy(
                self._address(step.result), self._address(step.source), bytes_of(step.source.shape, step.source.dtype)
            )
        if isinstance(step, Branch):
            sides = [sequence([self._run(each) for each in side]) for side in step.steps]
            return tirx.IfThenElse(self._flag(step.condition), *sides)
        operands = [
            self._argument(each.tensor, each.shape) if isinstance(each, View) else each for each in step.operands
        ]
        results = [self._argument(each, each.shape) for each in step.results]
        return tirx.Evaluate(tirx.call_cpacked(_SYMBOL + step.name, *operands, *results))

    def _argument(self, tensor: Tensor, shape: Sequence[Expr]) -> Expr:
        """The tensor as a kernel argument."""
        pointer = tvm.ir.PointerType(tvm.ir.PrimType("int64"))
        sizes = tvm.ir.Call(
            "tirx.tvm_stack_make_shape",
            [index(each, "int64") if isinstance(each, int) else tirx.Cast("int64", each) for each in shape],
            ret_ty=pointer,
        )
        operands = [self._address(tensor), sizes, 0, len(shape), tirx.const(0, tensor.dtype), index(0, "int64")]
        return tvm.ir.Call(tvm.ir.Op.get("tirx.tvm_stack_make_array"), operands, ret_ty="handle")


def _copy(to: Expr, source: Expr, size: Index) -> Stmt:
    """Copy bytes between two addresses."""
    return tirx.Evaluate(
        tirx.call_extern("handle", "memcpy", to, source, index(size, "int64") if isinstance(size, int) else size)
    )


def copy_kernel(stack: Sequence[Expr], rows: Var, dtype: str) -> tuple[PrimFunc, list[Var]]:
    """Return a kernel that copies the first rows of a stack, (allocated rows, *element) to (rows, *element), and its
    sizes."""
    source, result = _buffer("stack", list(stack), dtype), _buffer("rows", [rows, *stack[1:]], dtype)
    body = _copy(tirx.buffer_data(result), tirx.buffer_data(source), rows * bytes_of(stack[1:], dtype))
    attributes = {"tirx.is_scheduled": True, "tirx.noalias": True}
    numbers = _sizes_of([source, result], body)
    return _with_own_sizes([source, *numbers, result], body).with_attrs(attributes), numbers


def _buffer(name: str, shape: Sequence[Expr], dtype: str) -> Expr:
    return tirx.decl_buffer([index(each, "int64") if isinstance(each, int) else each for each in shape], dtype, name)


def _with_own_sizes(params: Sequence[Var], body: Stmt) -> PrimFunc:
    """Return the kernel with fresh variables for the symbolic sizes among its parameters."""
    buffers = [each for each in params if tirx.is_buffer_var(each)]
    fresh = {each: tirx.Var(str(each.name), "int64") for each in params if not tirx.is_buffer_var(each)}
    for param in buffers:
        fresh[param] = _buffer(str(param.name), [substitute(size, fresh) for size in param.ty.shape], dtype_of(param))
    renamed = structural_map(body, (tvm.ir.Var, lambda variable: fresh.get(variable, variable)))
    return tirx.PrimFunc([fresh[each] for each in params], renamed)


def _sizes_of(buffers: Sequence[Expr], body: Stmt) -> list[Var]:
    """Return the symbolic sizes that a kernel reads. They are passed as numbers: TVM cannot read them from a tensor if
    the kernel only uses its address."""
    read = dict.fromkeys(
        size for buffer in buffers for each in buffer.ty.shape for size in tirx.analysis.undefined_vars(each)
    )
    read.update(dict.fromkeys(tirx.analysis.undefined_vars(body, list(buffers))))
    return [each for each in read if not tirx.is_buffer_var(each)]


def _written(steps: Sequence[Step]) -> Iterator[Tensor]:
    """Yield every tensor that steps write, without duplicates."""
    seen: dict[Tensor, None] = {}
    for step in steps:
        if isinstance(step, KernelCall):
            seen.update(dict.fromkeys(step.results))
        elif isinstance(step, Copy):
            seen[step.result] = None
        else:
            for side in step.steps:
                seen.update(dict.fromkeys(_written(side)))
    return iter(seen)


def _names(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        if isinstance(step, KernelCall):
            yield step.name
        elif isinstance(step, Branch):
            for side in step.steps:
                yield from _names(side)


def _lifetimes(form: LoopForm) -> dict[Tensor, tuple[int, int]]:
    """Return the first and last step that uses each tensor, with the sides of branches one after the other."""
    lifetimes: dict[Tensor, tuple[int, int]] = {}
    time = 0

    def touch(tensor: Tensor) -> None:
        lifetimes[tensor] = (lifetimes.get(tensor, (time, 0))[0], time)

    def walk(steps: Sequence[Step]) -> None:
        nonlocal time
        for step in steps:
            time += 1
            if isinstance(step, Branch):
                touch(step.condition)
                for side in step.steps:
                    walk(side)
                continue
            reads = (
                [step.source]
                if isinstance(step, Copy)
                else [each.tensor for each in step.operands if isinstance(each, View)]
            )
            writes = [step.result] if isinstance(step, Copy) else step.results
            for each in (*reads, *writes):
                touch(each)

    walk(form.steps)
    time += 1
    for view in (*form.following, *form.elements, *([form.go] if form.go is not None else [])):
        touch(view.tensor)
    return lifetimes


class NotCompiledError(Exception):
    """The body does something other than calling kernels on tensors of fixed sizes; the loop is left unchanged."""


@dataclass(eq=False)
class Tensor:
    """A tensor of a step: an input of the loop (`given`), or written by a step."""

    shape: list[Expr]
    dtype: str
    given: Expr | None = None


@dataclass(frozen=True)
class View:
    """A tensor with the shape in which it is read."""

    tensor: Tensor
    shape: tuple[Expr, ...]


Value: TypeAlias = "View | list[Value] | tuple[Expr, ...]"
"""A tensor, a tuple of values (a list), or sizes (a tuple)."""


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel by name; operands that are not tensors are sizes."""

    name: str
    operands: list[View | Expr]
    results: list[Tensor]


@dataclass(frozen=True)
class Copy:
    """Copy a tensor to another of the same size."""

    source: Tensor
    result: Tensor


@dataclass(frozen=True)
class Branch:
    """Steps to run if a condition, a tensor of one bool, is true, and others if it is false."""

    condition: Tensor
    steps: tuple[list[Step], list[Step]]


Step: TypeAlias = KernelCall | Copy | Branch


@dataclass
class StepReader:
    """Converts calls of functions to steps.

    Attributes:
        mod: the module of the functions, after schedules were applied.
        steps: the steps so far.
        constants: the constants that steps read.
    """

    mod: IRModule
    steps: list[Step] = field(default_factory=list)
    constants: list[tuple[GenericConst, Tensor]] = field(default_factory=list)

    def call(self, function: Function, arguments: Sequence[Value]) -> Value:
        """Return the result of a call. Raises NotCompiledError."""
        return _FunctionReader(self, function, arguments).value_of(function.body)

    def constant(self, constant: GenericConst) -> View:
        """Return the loop input for a constant; the same one for repeated uses."""
        known = next((tensor for each, tensor in self.constants if each.same_as(constant)), None)
        if known is None:
            known = tensor_of(constant.ty, {}, given=constant)
            self.constants.append((constant, known))
        return View(known, tuple(known.shape))


def tensor_of(ty: Type, sizes: dict[Var, Expr], given: Expr | None = None) -> Tensor:
    """Return a tensor of a Relax type, with sizes substituted. Raises NotCompiledError if its shape is unknown."""
    if not isinstance(ty, relax.TensorType) or ty.shape is None or not isinstance(ty.shape, relax.ShapeExpr):
        raise NotCompiledError("a tensor of unknown shape")
    dtype = str(ty.dtype)
    if dtype != "bool" and dtype_bits(dtype) % 8:
        raise NotCompiledError(f"elements of {dtype}")
    return Tensor([substitute(size, sizes) for size in ty.shape.values], dtype, given)


class _FunctionReader:
    """Reads one call of a function; `sizes` and `values` belong to its variables."""

    def __init__(self, reader: StepReader, function: Function, arguments: Sequence[Value]) -> None:
        self._reader = reader
        self._sizes: dict[Var, Expr] = {}
        self._values: dict[Var, Value] = {}
        if len(arguments) != len(function.params):
            raise NotCompiledError("a function called with the wrong number of arguments")
        for parameter, value in zip(function.params, arguments, strict=True):
            self._values[parameter] = value
            if isinstance(value, View):
                self._bind_sizes(parameter.ty, value.shape)
            elif isinstance(value, tuple):
                self._bind_sizes(parameter.ty, value)

    def _bind_sizes(self, ty: Type, shape: Sequence[Expr]) -> None:
        """Bind the sizes that a type names to those of its value; sizes already bound must match."""
        named = ty.values if isinstance(ty, relax.ShapeType) else getattr(ty, "shape", None)
        if named is None or len(named) != len(shape):
            raise NotCompiledError("a shape that is not known")
        for size, value in zip(named, shape, strict=True):
            if isinstance(size, tirx.Var) and size not in self._sizes:
                self._sizes[size] = value
            elif not structural_equal(substitute(size, self._sizes), value):
                raise NotCompiledError("a size that is checked while the loop runs")

    def value_of(self, expr: Expr) -> Value:
        """Return the value of an expression."""
        if isinstance(expr, relax.SeqExpr):
            return self._sequence(expr)
        if isinstance(expr, relax.Var):
            return self._values[expr]
        if isinstance(expr, GenericConst):
            return self._reader.constant(expr)
        if isinstance(expr, relax.Tuple):
            return [self.value_of(each) for each in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            items = self.value_of(expr.tuple_value)
            assert isinstance(items, list)
            return items[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(substitute(size, self._sizes) for size in expr.values)
        if isinstance(expr, relax.If):
            return self._branch(expr)
        if isinstance(expr, relax.Call):
            return self._call(expr)
        raise NotCompiledError(f"a {type(expr).__name__}")

    def _sequence(self, sequence: SeqExpr) -> Value:
        for block in sequence.blocks:
            for binding in block.bindings:
                self._values[binding.var] = self._bound(binding)
        return self.value_of(sequence.body)

    def _bound(self, binding: Binding) -> Value:
        value = self.value_of(binding.value)
        if isinstance(binding, relax.MatchCast):
            if not isinstance(value, View):
                raise NotCompiledError("a size that a kernel computes")
            self._bind_sizes(binding.ty, value.shape)
        return value

    def _call(self, call: Call) -> Value:
        if isinstance(call.op, GlobalVar):
            callee = self._reader.mod[call.op]
            if not isinstance(callee, relax.Function) or LOOP in (callee.attrs or {}):
                raise NotCompiledError(f"a call of {call.op.name_hint}")
            return self._reader.call(callee, [self.value_of(each) for each in call.args])
        name = operator_name(call)
        if name == "relax.reshape":
            operand = self.value_of(call.args[0])
            shape = tensor_of(call.ty, self._sizes).shape
            assert isinstance(operand, View)
            return View(operand.tensor, tuple(shape))
        if name != "relax.call_tir" or not isinstance(call.args[0], GlobalVar):
            raise NotCompiledError(f"a call of {name}")
        return self._kernel(call)

    def _kernel(self, call: Call) -> Value:
        operands: list[View | Expr] = []
        fields = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else None
        for each in fields or ():
            value = substitute(each, self._sizes) if isinstance(each.ty, tvm.ir.PrimType) else self.value_of(each)
            if isinstance(value, list | tuple):
                raise NotCompiledError("a kernel with operands other than tensors")
            operands.append(value)
        if fields is None or len(call.args) > 2:
            raise NotCompiledError("a kernel whose operands are not known")
        ty = call.ty_args[0]
        types = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
        results = [tensor_of(each, self._sizes) for each in types]
        self._reader.steps.append(KernelCall(str(call.args[0].name_hint), operands, results))
        whole: list[Value] = [View(each, tuple(each.shape)) for each in results]
        return whole if isinstance(ty, relax.TupleType) else whole[0]

    def _branch(self, choice: relax.If) -> Value:
        condition = self.value_of(choice.cond)
        assert isinstance(condition, View)
        outer, sides, results = self._reader.steps, [], []
        for branch in (choice.true_branch, choice.false_branch):
            self._reader.steps = []
            results.append(self.value_of(branch))
            sides.append(self._reader.steps)
        self._reader.steps = outer
        joined = _joined(results[0], results[1], sides)
        outer.append(Branch(condition.tensor, (sides[0], sides[1])))
        return joined


def _joined(left: Value, right: Value, sides: Sequence[list[Step]]) -> Value:
    """Merge the results of both sides of a branch, by copies to common tensors at the end of each."""
    if isinstance(left, list) and isinstance(right, list):
        return [_joined(a, b, sides) for a, b in zip(left, right, strict=True)]
    if not isinstance(left, View) or not isinstance(right, View) or left.tensor.dtype != right.tensor.dtype:
        raise NotCompiledError("branches that return different kinds of values")
    if not structural_equal(list(left.shape), list(right.shape)):
        raise NotCompiledError("branches that return tensors of different shapes")
    result = Tensor(list(left.shape), left.tensor.dtype)
    for view, steps in zip((left, right), sides, strict=True):
        steps.append(Copy(view.tensor, result))
    return View(result, left.shape)
