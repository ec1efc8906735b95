"""Liveness of the tensors that a lowered function allocates, and their assignment to storages.

Time is the position of a binding in program order, with branches one after the other. A view, a tuple or a result that
may alias an operand counts as that operand: aliases of one buffer live until the last use of any of them.

The assignment is "greedy by size for shared objects" of Pisarchyk and Lee, arXiv:2001.03288: from the largest tensor
to the smallest, each takes the smallest storage that is free during its lifetime, or a new one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import GlobalVar
from tvm.sym import Analyzer
from tvm_ffi import structural_equal

from compiler.passes.rewriting.graph import operands, operator_name
from compiler.passes.rewriting.substitution import leaves
from schedules.annotations import UPDATES
from schedules.ir.tvm_types import Call, Expr, Function, IRModule, SeqExpr, Var

ALLOCATE = "relax.builtin.alloc_tensor"
IN_PLACE = "tensorwright.in_place"  # attribute of a kernel: the operands that its result may overwrite


@dataclass
class Allocation:
    """A tensor allocated by the function.

    Attributes:
        variable: the variable it is bound to.
        size: bytes; the upper bound if symbolic; None if there is no bound.
        formula: the bytes as a simplified symbolic expression if there is no bound; None if they are known, or the
            element size is not a whole number of bytes.
        lifetime: first write to last read; None if never used.
        escapes: it may be a result of the function, which must own its memory.
        in_place: variable of an allocation whose memory it can reuse, last read by the kernel that writes this one.
        is_updated: the kernel that writes it starts with a copy of that allocation (see `UPDATES`), which is then
            redundant.
    """

    variable: Var
    size: int | None
    formula: Expr | None = None
    lifetime: Lifetime | None = None
    escapes: bool = False
    in_place: Var | None = None
    is_updated: bool = False


@dataclass
class _Group:
    """Variables that alias the same memory."""

    parent: _Group | None = None
    first: int | None = None
    last: int = -1
    escapes: bool = False
    allocations: int = 0

    def root(self) -> _Group:
        group = self
        while group.parent is not None:
            group = group.parent
        return group


@dataclass
class _Kernel:
    """A kernel call: its time, reads and writes, the operands it may overwrite, and the operand it updates."""

    time: int
    arguments: list[Expr]
    in_place: list[int] = field(default_factory=list)
    updates: int | None = None


class Liveness:
    """Liveness of the allocations of one function."""

    def __init__(self, mod: IRModule, function: Function, bounds: Mapping[str, int]) -> None:
        self._mod = mod
        self._bounds = bounds
        self._time = 0
        self._groups: dict[Var, _Group] = {}
        self._kernels: list[_Kernel] = []
        self.allocations: dict[Var, Allocation] = {}
        self._read(function.body)
        self._escape(function.body.body)
        for parameter in function.params:
            self._group(parameter).escapes = True
        self._conclude()

    def _group(self, variable: Var) -> _Group:
        if variable not in self._groups:
            self._groups[variable] = _Group()
        return self._groups[variable].root()

    def _unite(self, left: Expr, right: Expr) -> None:
        root, child = self._group(left), self._group(right)
        if root is child:
            return
        child.parent = root
        starts = [start for start in (root.first, child.first) if start is not None]
        root.first = min(starts) if starts else None
        root.last = max(root.last, child.last)
        root.escapes |= child.escapes
        root.allocations += child.allocations

    def _use(self, variable: Var) -> None:
        group = self._group(variable)
        group.first = self._time if group.first is None else group.first
        group.last = self._time

    def _escape(self, expr: Expr) -> None:
        for leaf in leaves(expr):
            if isinstance(leaf, relax.Var):
                self._group(leaf).escapes = True

    def _read(self, sequence: SeqExpr) -> None:
        for block in sequence.blocks:
            for binding in block.bindings:
                self._time += 1
                self._read_binding(binding.var, binding.value)
        self._time += 1
        for variable in operands(sequence.body):
            self._use(variable)

    def _read_binding(self, variable: Var, value: Expr) -> None:
        if isinstance(value, relax.If):
            for condition in operands(value):
                self._use(condition)
            for branch in (value.true_branch, value.false_branch):
                self._read(branch)
                for result in operands(branch.body):
                    self._unite(variable, result)
            return
        if isinstance(value, relax.Function):  # a closure: it is unknown when it runs
            self._escape(value.body)
            return
        if operator_name(value) == ALLOCATE:
            size = self._bytes(value.args[0], value.args[1])
            formula = _formula(value.args[0], value.args[1]) if size is None else None
            self.allocations[variable] = Allocation(variable, size, formula)
            self._group(variable).allocations += 1
            return
        used = list(operands(value))
        for operand in used:
            self._use(operand)
        if isinstance(value, relax.Call) and isinstance(value.ty, relax.TupleType) and not value.ty.fields:
            self._note_kernel(value)
        elif _may_hold_memory(variable):
            for operand in used:
                self._unite(variable, operand)

    def _note_kernel(self, call: Call) -> None:
        arguments = list(call.args)
        if isinstance(call.op, GlobalVar):
            attributes = self._mod[call.op].attrs or {}
            allowed = [int(index) for index in attributes.get(IN_PLACE, ())]
            updates = attributes.get(UPDATES)
            if updates is not None:
                allowed.append(int(updates))
            self._kernels.append(_Kernel(self._time, arguments, allowed, None if updates is None else int(updates)))

    def _bytes(self, shape: Expr, dtype: Expr) -> int | None:
        analyzer = Analyzer()
        count = 1
        for size in shape.values if isinstance(shape, relax.ShapeExpr) else (None,):
            bound = self._bound(size, analyzer)
            if bound is None:
                return None
            count *= bound
        return (count * int(tvm.DataType(str(dtype.value)).bits) + 7) // 8

    def _bound(self, size: Expr, analyzer: Analyzer) -> int | None:
        if isinstance(size, tvm.tirx.IntImm):
            return int(size)
        if size is None:
            return None
        for symbol in relax.analysis.tir_vars_in_type(relax.ShapeType([size])):
            if symbol.name not in self._bounds:
                return None
            analyzer.bind(symbol, tvm.ir.Range(0, self._bounds[symbol.name] + 1))
        return int(analyzer.const_int_bound(size).max_value)

    def _conclude(self) -> None:
        for allocation in self.allocations.values():
            group = self._group(allocation.variable)
            allocation.escapes = group.escapes
            if group.first is not None and (allocation.size is not None or allocation.formula is not None):
                allocation.lifetime = Lifetime(allocation.size or 0, group.first, group.last)
        for kernel in self._kernels:
            self._match_in_place(kernel)

    def _match_in_place(self, kernel: _Kernel) -> None:
        """Reuse an operand's memory for the output if it ends here, the kernel allows it and both are single
        tensors."""
        result = self.allocations.get(kernel.arguments[-1]) if kernel.arguments else None
        if result is None or result.lifetime is None or result.escapes:
            return
        for index in kernel.in_place:
            source = self._allocation_behind(kernel.arguments[index])
            if source is None or source.lifetime is None or source.escapes or source is result:
                continue
            if not self._read_only_elementwise(kernel, source):
                continue
            if source.lifetime.end == kernel.time == result.lifetime.start and _is_as_large(source, result):
                result.in_place = source.variable
                result.is_updated = index == kernel.updates
                return

    def _read_only_elementwise(self, kernel: _Kernel, source: Allocation) -> bool:
        """True if no other operand of the kernel is a view of `source` that it reads at other positions."""
        group = self._group(source.variable)
        views = [
            index
            for index, argument in enumerate(kernel.arguments)
            if isinstance(argument, relax.Var) and self._group(argument) is group
        ]
        return set(views) <= set(kernel.in_place)

    def _allocation_behind(self, variable: Var) -> Allocation | None:
        if not isinstance(variable, relax.Var) or self._group(variable).allocations != 1:
            return None
        group = self._group(variable)
        return next((a for v, a in self.allocations.items() if self._group(v) is group), None)


def _is_as_large(one: Allocation, other: Allocation) -> bool:
    if one.size is not None or other.size is not None:
        return one.size == other.size
    return one.formula is not None and structural_equal(one.formula, other.formula)


def _formula(shape: Expr, dtype: Expr) -> Expr | None:
    bits = int(tvm.DataType(str(dtype.value)).bits)
    if not isinstance(shape, relax.ShapeExpr) or bits % 8:
        return None
    count: Expr = tvm.tirx.IntImm("int64", bits // 8)
    for size in shape.values:
        count = count * size
    return Analyzer().simplify(count)


def _may_hold_memory(variable: Var) -> bool:
    return not isinstance(variable.ty, relax.ShapeType | tvm.ir.PrimType)


ALIGNMENT = 64  # of storages, in bytes; the alignment of TVM's allocator


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `size` bytes, first written at time `start` and last read at time `end`."""

    size: int
    start: int
    end: int


@dataclass
class Storage:
    """Memory shared by tensors with disjoint lifetimes."""

    size: int
    _spans: list[tuple[int, int, int]] = field(default_factory=list)  # (start, end, tensor), sorted, disjoint

    def admits(self, lifetime: Lifetime, before: int | None) -> bool:
        """True if nothing else lives here in that time; tensor `before` may end exactly when this one starts."""
        position = bisect_left(self._spans, (lifetime.start, -1, -1))
        if position < len(self._spans) and self._spans[position][0] <= lifetime.end:
            return False
        if position == 0:
            return True
        _, end, tensor = self._spans[position - 1]
        return end < lifetime.start or (end == lifetime.start and tensor == before)

    def put(self, tensor: int, lifetime: Lifetime) -> None:
        """Assign `tensor` to this storage."""
        insort(self._spans, (lifetime.start, lifetime.end, tensor))


def assign(lifetimes: Sequence[Lifetime], in_place: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Return the storage of each tensor, and the size of each storage in bytes. `in_place`: tensor -> a tensor whose
    memory it may reuse, last read by the kernel that writes the new one."""
    storages: list[Storage] = []
    chosen = [-1] * len(lifetimes)
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].start))
    for tensor in order:
        lifetime = lifetimes[tensor]
        free = [i for i, storage in enumerate(storages) if storage.admits(lifetime, in_place.get(tensor))]
        if not free:
            storages.append(Storage(aligned(lifetime.size)))
            free = [len(storages) - 1]
        source = in_place.get(tensor)
        same = [i for i in free if source is not None and chosen[source] == i]
        chosen[tensor] = same[0] if same else min(free, key=lambda i: storages[i].size)
        storages[chosen[tensor]].put(tensor, lifetime)
    return chosen, [storage.size for storage in storages]


def aligned(size: int) -> int:
    """Round `size` up to a positive multiple of `ALIGNMENT`."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def peak_of_live_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """Return the most bytes alive at one time, a lower bound for planning without in-place reuse."""
    changes: dict[int, int] = {}
    for lifetime in lifetimes:
        changes[lifetime.start] = changes.get(lifetime.start, 0) + aligned(lifetime.size)
        changes[lifetime.end + 1] = changes.get(lifetime.end + 1, 0) - aligned(lifetime.size)
    live = peak = 0
    for time in sorted(changes):
        live += changes[time]
        peak = max(peak, live)
    return peak
