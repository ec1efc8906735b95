"""Bytes that a kernel's loop nest moves into each cache: the distinct lines of data that fits, repeated if it does not.

If one iteration of a loop fits into a cache, the data that the next iteration reads again stays there; otherwise every
iteration starts anew (Wolf and Lam 1991).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from schedules.ir.stages import dtype_of
from schedules.ir.tir import structural_walk, tirx, tvm
from schedules.ir.tvm_types import Buffer, Expr, Node, PrimFunc, Stmt, Var
from schedules.machine import dtype_bits

_USABLE = 0.75  # of a cache: the rest is lost to conflicts and other data
Footprint = dict[int, float]


@dataclass
class _Level:
    """Bytes touched by one execution of a loop, and by one iteration of it, by buffer."""

    nest: Nest
    inside: list[Access | _Level]
    whole: Footprint
    once: Footprint


class Traffic:
    """Bytes that enter caches during one call of a kernel on one core.

    Args:
        accesses: accesses of the kernel.
        tasks: iterations of a parallel loop that the core runs, given the total number.
    """

    def __init__(self, accesses: Accesses, cores: int) -> None:
        self._accesses, self._cores = accesses, cores
        self._extents: dict[int, int] = {}
        self._root = self._level(accesses.nest)

    def into(self, capacity: int) -> Footprint:
        """Bytes by buffer that enter a cache of a given size in bytes."""
        return self._missed(self._root, _USABLE * capacity)

    def touched(self) -> Footprint:
        """Bytes by buffer that the core touches in total."""
        return self._root.whole

    def _level(self, nest: Nest) -> _Level:
        extent = -(-nest.extent // self._cores) if nest.parallel else nest.extent
        self._extents[nest.variable] = extent
        inside: list[Access | _Level] = [self._level(each) if isinstance(each, Nest) else each for each in nest.body]
        within = list(_accesses(nest))
        variables = set(_variables(nest))
        footprint = self._footprint(within, variables)
        once = self._footprint(within, variables - {nest.variable})
        return _Level(nest, inside, footprint, once)

    def _footprint(self, accesses: Sequence[Access], variables: set[int]) -> Footprint:
        """Bytes of the distinct lines by buffer. Lines reached by several accesses count once."""
        reached: dict[int, dict[Ranges, None]] = {}
        for access in accesses:
            start, moved = access.address.constant, []
            for over, by in access.address.terms:
                if over in variables:
                    moved.append((abs(by), self._extents[over]))
                    start += min(by, 0.0) * (self._extents[over] - 1)
            span = max(access.lanes * max(access.stride, 0), access.bytes)
            reached.setdefault(access.buffer, {})[(start, float(span), tuple(sorted(moved)))] = None
        return {buffer: bytes_of_lines(ranges, self._accesses.nbytes[buffer]) for buffer, ranges in reached.items()}

    def _missed(self, level: _Level, capacity: float) -> Footprint:
        if sum(level.whole.values()) <= capacity or sum(level.once.values()) <= capacity:
            return level.whole
        times = self._extents[level.nest.variable]
        missed: Footprint = {}
        loose = self._footprint([each for each in level.inside if isinstance(each, Access)], set())
        parts = [self._missed(each, capacity) for each in level.inside if isinstance(each, _Level)]
        for part in (loose, *parts):
            for buffer, nbytes in part.items():
                missed[buffer] = missed.get(buffer, 0.0) + times * nbytes
        return missed


def _accesses(nest: Nest) -> Iterable[Access]:
    for each in nest.body:
        if isinstance(each, Access):
            yield each
        else:
            yield from _accesses(each)


def _variables(nest: Nest) -> Iterable[int]:
    yield nest.variable
    for each in nest.body:
        if isinstance(each, Nest):
            yield from _variables(each)


LINE = 64
_MAX_RANGES = 1 << 16  # most ranges kept apart; for more, the bytes between the first and the last are an estimate
Ranges = tuple[float, float, tuple[tuple[float, int], ...]]
"""An access: its first byte, the bytes it spans, and the stride and iterations of each loop that moves it, sorted."""
_Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def bytes_of_lines(accesses: Iterable[Ranges], nbytes: int) -> float:
    """Bytes of the cache lines that any of the accesses reaches, in a buffer of a given size in bytes."""
    begins, ends, dense = [], [], 0.0
    for access in accesses:
        ranges = _ranges(access)
        if ranges is None:
            dense += _shared_out(access)
        else:
            begins.append(ranges[0])
            ends.append(ranges[1])
    buffer_bytes = float(-(-nbytes // LINE) * LINE)
    if not begins:
        return min(dense, buffer_bytes)
    first = np.maximum(np.floor(np.concatenate(begins) / LINE) * LINE, 0.0)
    last = np.minimum(np.ceil(np.concatenate(ends) / LINE) * LINE, buffer_bytes)
    inside = last > first  # borders excluded by conditions are not in the buffer
    begin, end = _joined(first[inside], last[inside])
    return min(float((end - begin).sum()) + dense, buffer_bytes)


@lru_cache(maxsize=4096)
def _ranges(access: Ranges) -> _Pair | None:
    """Starts and ends of the byte ranges that an access reaches; None if there are too many."""
    start, span, moved = access
    begin, end = np.array([start]), np.array([start + span])
    for stride, times in moved:
        if times == 1:
            continue
        if len(begin) == 1 and stride <= max(end[0] - begin[0], LINE):  # no line in between is skipped
            end = end + stride * (times - 1)
            continue
        if len(begin) * times > _MAX_RANGES:
            return None
        offsets = stride * np.arange(times)
        begin, end = _joined((begin[:, None] + offsets).ravel(), (end[:, None] + offsets).ravel())
    return begin, end


def _joined(begin: NDArray[np.float64], end: NDArray[np.float64]) -> _Pair:
    """Merge ranges that overlap or touch, in order."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    if not len(begin):
        return begin, end
    apart = begin[1:] > end[:-1]
    return begin[np.append(True, apart)], end[np.append(apart, True)]


def _shared_out(access: Ranges) -> float:
    """Bytes of the lines of an access with too many ranges to keep apart: no two are assumed to overlap."""
    _, span, moved = access
    count = 1.0
    for stride, times in moved:
        if stride <= max(span, LINE):
            span += stride * (times - 1)
        else:
            count *= times
    return count * max(span, LINE)


_IN_REGISTERS = 16 << 10  # "local" buffers up to this many bytes count as register tiles, or as cheap as those


@dataclass(frozen=True)
class Affine:
    """A sum of loop variables by number, each times a coefficient; `extents` bounds those that a modulo limits."""

    constant: float = 0.0
    terms: tuple[tuple[int, float], ...] = ()

    def plus(self, other: Affine, times: float = 1.0) -> Affine:
        """The sum of this and a multiple of another."""
        sums = dict(self.terms)
        for variable, factor in other.terms:
            sums[variable] = sums.get(variable, 0.0) + times * factor
        terms = tuple((variable, factor) for variable, factor in sorted(sums.items()) if factor)
        return Affine(self.constant + times * other.constant, terms)

    def scaled(self, factor: float) -> Affine:
        """A multiple."""
        return Affine(self.constant * factor, tuple((variable, each * factor) for variable, each in self.terms))


@dataclass(frozen=True)
class Access:
    """A load or store: the buffer, its byte address from the buffer's start, and the bytes and stride accessed."""

    buffer: int
    address: Affine
    lanes: int
    stride: int
    bytes: int
    writes: bool


@dataclass
class Nest:
    """A loop, or the whole kernel with one iteration; `body` holds accesses and inner loops in order."""

    variable: int = -1
    extent: int = 1
    parallel: bool = False
    body: list[Access | Nest] = field(default_factory=list)


@dataclass
class Accesses:
    """A kernel's nest, and for each buffer its bytes and the position of its parameter (None for scratch memory)."""

    nest: Nest
    nbytes: list[int]
    parameters: list[int | None]


def accesses_of(function: PrimFunc) -> Accesses:
    """Read a scheduled PrimFunc of static shapes."""
    reader = _Reader(function)
    return Accesses(reader.root, reader.nbytes, reader.parameters)


class _Reader:
    def __init__(self, function: PrimFunc) -> None:
        self.root = Nest()
        self.nbytes: list[int] = []
        self.parameters: list[int | None] = []
        self._buffers: dict[Buffer, int] = {}
        self._values: dict[Var, Affine] = {}
        self._extents: dict[int, int] = {}
        for position, buffer in enumerate(function.params):
            self._declare(buffer, position)
        self._statement(function.body, self.root)

    def _declare(self, buffer: Buffer, position: int | None) -> int:
        if buffer not in self._buffers:
            self._buffers[buffer] = len(self.nbytes)
            size = dtype_bits(dtype_of(buffer)) // 8 or 1
            for extent in buffer.shape:
                size *= _constant(extent) or 1
            self.nbytes.append(size)
            self.parameters.append(position)
        return self._buffers[buffer]

    def _statement(self, statement: Stmt, nest: Nest) -> None:
        if isinstance(statement, tirx.For):
            extent = _constant(statement.extent) or 1
            inner = Nest(len(self._extents), extent, statement.kind == tirx.ForKind.PARALLEL)
            self._extents[inner.variable] = extent
            start = self._affine(statement.min)
            self._values[statement.loop_var] = start.plus(Affine(0.0, ((inner.variable, 1.0),)))
            nest.body.append(inner)
            self._statement(statement.body, inner)
        elif isinstance(statement, tirx.SeqStmt):
            for each in statement:
                self._statement(each, nest)
        elif isinstance(statement, tirx.BufferStore):
            self._loads(statement.value, nest)
            self._access(statement.buffer, statement.indices, nest, writes=True)
        elif isinstance(statement, tirx.IfThenElse):
            self._loads(statement.condition, nest)
            self._statement(statement.then_case, nest)
            if statement.else_case is not None:
                self._statement(statement.else_case, nest)
        elif isinstance(statement, tirx.Bind):
            self._loads(statement.value, nest)
            self._values[statement.var] = self._affine(statement.value)
        elif isinstance(statement, tirx.Evaluate):
            self._loads(statement.value, nest)
        elif hasattr(statement, "block"):
            self._statement(statement.block, nest)
        elif hasattr(statement, "body"):
            self._statement(statement.body, nest)

    def _loads(self, value: Node, nest: Nest) -> None:
        def visit(load: Expr) -> None:
            self._access(load.source, load.indices, nest, writes=False)

        structural_walk(value, (tvm.ir.TensorLoad, visit))

    def _access(self, buffer: Buffer, indices: Sequence[Expr], nest: Nest, *, writes: bool) -> None:
        number = self._declare(buffer, None)
        if self.parameters[number] is None and self.nbytes[number] <= _IN_REGISTERS and str(buffer.scope()) == "local":
            return
        size = dtype_bits(dtype_of(buffer)) // 8 or 1
        address, lanes, stride, scale = Affine(), 1, 0, size
        for index, extent in reversed(list(zip(indices, buffer.shape, strict=True))):
            if isinstance(index, tirx.Ramp):
                lanes, step = int(index.lanes), self._affine(index.stride)
                stride = int(step.constant * scale)
                index = index.base
            address = address.plus(self._affine(index), scale)
            scale *= _constant(extent) or 1
        nest.body.append(Access(number, address, lanes, stride, size, writes))

    def _affine(self, value: Expr) -> Affine:
        """An index as a linear function; divisions and moduli are approximated."""
        if isinstance(value, tirx.IntImm):
            return Affine(float(int(value.value)))
        known = self._values.get(value) if isinstance(value, tirx.Var) else None
        if known is not None:
            return known
        if isinstance(value, tirx.Add):
            return self._affine(value.a).plus(self._affine(value.b))
        if isinstance(value, tirx.Sub):
            return self._affine(value.a).plus(self._affine(value.b), -1.0)
        if isinstance(value, tirx.Mul):
            a, b = self._affine(value.a), self._affine(value.b)
            return b.scaled(a.constant) if not a.terms else a.scaled(b.constant) if not b.terms else Affine()
        if isinstance(value, tirx.FloorDiv | tirx.Div):
            return self._divided(self._affine(value.a), self._affine(value.b).constant)
        if isinstance(value, tirx.FloorMod | tirx.Mod):
            return self._modulo(self._affine(value.a), self._affine(value.b).constant)
        if isinstance(value, tirx.Min | tirx.Max):
            a, b = self._affine(value.a), self._affine(value.b)
            return a if a.terms else b
        inner = getattr(value, "value", None)  # a Cast or a Broadcast
        return Affine() if inner is None or isinstance(inner, int | float) else self._affine(inner)

    def _divided(self, inner: Affine, divisor: float) -> Affine:
        """The quotient; 0 for terms that never reach the divisor."""
        if not divisor:
            return Affine()
        ends = [factor * (self._extents[variable] - 1) for variable, factor in inner.terms]
        least = inner.constant + sum(min(each, 0.0) for each in ends)
        most = inner.constant + sum(max(each, 0.0) for each in ends)
        return Affine() if least >= 0 and most < divisor else inner.scaled(1 / divisor)

    def _modulo(self, inner: Affine, divisor: float) -> Affine:
        """Remainder of each variable: 0 for one that moves by whole divisors; one that moves further than a divisor is
        spread over it."""
        terms = []
        for variable, factor in inner.terms:
            if divisor and factor % divisor == 0:
                continue
            reach = abs(factor) * self._extents[variable]
            terms.append((variable, factor * divisor / reach if divisor and reach > divisor else factor))
        return Affine(inner.constant % divisor if divisor else 0.0, tuple(terms))


def _constant(value: Expr) -> int | None:
    if isinstance(value, int):
        return value
    return int(value.value) if isinstance(value, tirx.IntImm) else None
