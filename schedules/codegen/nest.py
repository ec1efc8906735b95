"""Loop nests from closures: `repeat("i", 8, lambda i: store(buffer, value, i))`.

Indices may be Python ints or expressions; an int stays an int until it enters the IR, so known arithmetic is folded
while the kernel is written. Vectors are explicit (`lanes_of`, `broadcast`, `bind`), so that register tiles do not
depend on the vectorizer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from schedules.instructions.prefetch import prefetch_statement
from schedules.ir.expression import expression, index, unflattened
from schedules.ir.stages import Axis, Kernel
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, PrimFunc, Stmt, Var, s_tir, tirx
from schedules.machine import Machine
from schedules.task_split import chunks_at_run_time, split_nest

SERIAL = tirx.ForKind.SERIAL
PARALLEL = tirx.ForKind.PARALLEL

Body = Callable[[Any], Stmt]

_INDEX = "int64"

# How many rows of weights (a vector or two each) the innermost loops prefetch: the hardware prefetcher stops at 4 KiB,
# and a row takes some ten cycles, so this covers the memory latency.
ROWS_AHEAD = 64
# Marks a parallel loop whose body becomes a function: a single iteration is a call of it on the calling thread.
CHUNKED = "tensorwright.chunked"


def sequence(*parts: Stmt | Iterable[Stmt] | None) -> Stmt:
    """A sequence of statements, lists flattened and None left out; an empty statement if there are none."""
    flat: list[Stmt] = []
    for part in parts:
        if isinstance(part, (list, tuple)):
            flat.extend(each for each in part if each is not None)
        elif part is not None:
            flat.append(part)
    if not flat:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


def repeat(name: str, extent: Expr | int, body: Body, kind: Stmt = SERIAL, dtype: str = _INDEX) -> Stmt:
    """A loop from 0; for extent 1, its body at the int 0."""
    if isinstance(extent, int) and extent == 1:
        return body(0)
    var = tirx.Var(name, dtype)
    return loop(var, extent, body(var), kind)


def repeat_symbolic(name: str, extent: Expr | int, body: Callable[[Expr], Stmt], kind: Stmt = SERIAL) -> Stmt:
    """`repeat` for a body that needs an expression: the index of a loop of extent 1 is an IR constant."""
    return repeat(name, extent, lambda i: body(expression(i)), kind)


def loop(var: Var, extent: Expr | int, body: Stmt, kind: Stmt = SERIAL) -> Stmt:
    """A loop from 0 over a variable that its body already uses; emitted even for extent 1."""
    dtype = str(var.ty)
    return tirx.For(var, index(0, dtype), expression(extent, dtype), kind, body)


def parallel(name: str, extent: Expr | int, body: Body) -> Stmt:
    """A loop whose iterations are shared among the threads."""
    return repeat(name, extent, body, PARALLEL)


def vectorized(name: str, lanes: int, body: Body) -> Stmt:
    """A loop over the lanes of a vector."""
    return repeat(name, lanes, body, VECTORIZED)


def grid(names: Sequence[str], extents: Sequence[Expr | int], body: Callable[[list[Index]], Stmt]) -> Stmt:
    """Nested serial loops, the first outermost."""
    if not extents:
        return body([])
    return repeat(names[0], extents[0], lambda i: grid(names[1:], extents[1:], lambda rest: body([i, *rest])))


@dataclass(frozen=True)
class Extent:
    """A loop of `parallel_grid`: a name, its extent and its variable's dtype."""

    name: str
    extent: Index
    dtype: str = _INDEX


def parallel_grid(
    extents: Sequence[Extent],
    body: Callable[[list[Expr]], Stmt],
    machine: Machine,
    *,
    parallel: bool | Expr,
    cycles: float = 0.0,
) -> Stmt:
    """Nested loops; if `parallel`, outer ones are fused into one until every core gets its share.

    A condition for `parallel` is evaluated when the kernel runs; the code of the nest is still emitted only once.
    `cycles`: cycles of the whole nest on one core, if known.
    """
    if not extents:
        return body([])
    fused = 0 if parallel is False else split_nest([each.extent for each in extents], machine, cycles).fused
    if not isinstance(parallel, bool):
        chunks = tirx.Select(parallel, index(chunks_at_run_time(machine)), index(1))
        return chunked_grid(extents, body, max(fused, 1), chunks)
    variables = [tirx.Var(each.name, each.dtype) for each in extents[fused:]]
    if not fused:
        return _nested(extents, variables, body(list(variables)))
    head = extents[:fused]
    total = math.prod(each.extent for each in head)
    var = tirx.Var("_".join(each.name for each in head), head[0].dtype)
    positions = unflattened(var, [expression(each.extent, each.dtype) for each in head])
    inner = _nested(extents[fused:], variables, body([*positions, *variables]))
    return loop(var, total, inner, PARALLEL)


def tasks_loop(name: str, count: Index, body: Body, shared: bool | Expr) -> Stmt:
    """A loop over tasks that threads share if `shared`, which may be known only when the kernel runs."""
    if isinstance(shared, bool):
        return repeat(name, count, body, PARALLEL if shared else SERIAL)
    pieces = tirx.Select(shared, expression(count), index(1))
    return chunked_grid([Extent(name, count)], lambda at: body(at[0]), 1, pieces)


def chunked_grid(extents: Sequence[Extent], body: Callable[[list[Expr]], Stmt], fused: int, chunks: Expr) -> Stmt:
    """Nested loops whose first `fused` ones are split into `chunks` pieces of consecutive iterations, shared among the
    threads; a single piece runs on the calling thread.

    Each chunk is a nest of loops from its first point to its last, so that no iteration computes its indices by
    division.
    """
    bindings: list[Stmt] = []
    count = name_opaque("chunks", chunks, bindings)
    chunk = tirx.Var("chunk", _INDEX)
    total: Expr = index(1, _INDEX)
    for extent in extents[:fused]:
        total = total * _wide(extent.extent)
    ends: list[Stmt] = []
    first = name_opaque("first", tirx.Div(chunk * total, count), ends)
    last = name_opaque("last", tirx.Div((chunk + 1) * total, count) - 1, ends)
    variables = [tirx.Var(each.name, each.dtype) for each in extents[fused:]]
    nest = _between(
        extents[:fused], first, last, lambda at: _nested(extents[fused:], variables, body([*at, *variables]))
    )
    task = sequence(ends, tirx.IfThenElse(first <= last, nest, None))
    marks = {CHUNKED: tirx.IntImm("int32", 1)}
    whole = tirx.For(chunk, index(0, _INDEX), count, PARALLEL, task, annotations=marks)
    return sequence(bindings, whole)


def _between(extents: Sequence[Extent], first: Expr, last: Expr, body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """Loops over the points of a grid from `first` to `last`, both given by their numbers and inclusive."""
    bindings: list[Stmt] = []
    lowest, highest = (
        [name_opaque(f"{name}_{each.name}", value, bindings) for each, value in zip(extents, point, strict=True)]
        for name, point in (("first", _point(first, extents)), ("last", _point(last, extents)))
    )

    def level(at: list[Expr], is_first: Expr | bool, is_last: Expr | bool) -> Stmt:
        depth = len(at)
        if depth == len(extents):
            return body(at)
        extent = extents[depth]
        inner: list[Stmt] = []
        low, high = lowest[depth], highest[depth]
        if depth:
            low = name_opaque(f"{extent.name}_low", tirx.Select(is_first, low, index(0, _INDEX)), inner)
            high = name_opaque(f"{extent.name}_high", tirx.Select(is_last, high, _wide(extent.extent) - 1), inner)

        def step(offset: Expr) -> Stmt:
            wide = low + offset
            value, binding = bind(
                extent.name, wide if extent.dtype == _INDEX else tirx.Cast(extent.dtype, wide), extent.dtype, 1
            )
            here = [both(known, tirx.EQ(_wide(value), end)) for known, end in ((is_first, low), (is_last, high))]
            return sequence(binding, level([*at, value], *here))

        var = tirx.Var(f"{extent.name}_offset", _INDEX)
        return sequence(inner, loop(var, high - low + 1, step(var)))

    return sequence(bindings, level([], True, True))


def _point(number: Expr, extents: Sequence[Extent]) -> list[Expr]:
    """The indices of a grid point, from its number."""
    values: list[Expr] = []
    for each in reversed(extents[1:]):
        values.append(tirx.Mod(number, _wide(each.extent)))
        number = tirx.Div(number, _wide(each.extent))
    return [number, *reversed(values)]


def _wide(value: Expr | int) -> Expr:
    return expression(value) if isinstance(value, int) or str(value.ty) == _INDEX else tirx.Cast(_INDEX, value)


def _nested(extents: Sequence[Extent], variables: Sequence[Var], body: Stmt) -> Stmt:
    return loops_over([Axis(var, each.extent) for each, var in zip(extents, variables, strict=True)], body)


def static_grid(*extents: int) -> Iterable[tuple[int, ...]]:
    """The points of a box of known extents, for unrolling."""
    return itertools.product(*(range(extent) for extent in extents))


def split_repeat(name: str, extent: int, tile: int, body: Callable[[Index, int], Stmt], dtype: str = _INDEX) -> Stmt:
    """`body(start, size)` over [0, extent) in tiles: a loop of whole tiles, then the remainder."""
    whole, rest = divmod(extent, tile)
    loop = repeat(name, whole, lambda i: body(i * tile, tile), dtype=dtype) if whole else None
    return sequence(loop, body(whole * tile, rest) if rest else None)


def in_vectors(name: str, extent: int, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop in vectors, the last of which may be shorter."""

    def vector(start: Index, size: int) -> Stmt:
        at = expression(start)
        return repeat_symbolic("lane", size, lambda lane: body(at + lane), VECTORIZED)

    return split_repeat(name, extent, lanes, vector)


def split_steps(name: str, extent: int, step: int, body: Callable[[Expr, int], Stmt]) -> list[Stmt]:
    """`body(number of the step, size)` over [0, extent) in steps: a loop of whole steps, then the remainder."""
    whole, rest = divmod(extent, step)
    parts = [repeat_symbolic(name, whole, lambda i: body(i, step))] if whole else []
    return [*parts, *([body(expression(whole), rest)] if rest else [])]


def store(buffer: Buffer | list[Buffer], value: Expr, *indices: Expr | int) -> Stmt:
    """buffer[indices] = value; the buffer may be the list of `allocate_tile`."""
    if isinstance(buffer, list):
        return store(buffer[_known(indices[0])], value, *indices[1:])
    return tirx.BufferStore(buffer, value, [expression(each) for each in indices])


def load(buffer: Buffer | list[Buffer], *indices: Expr | int) -> Expr:
    """buffer[indices]; the buffer may be the list of `allocate_tile`."""
    if isinstance(buffer, list):
        return load(buffer[_known(indices[0])], *indices[1:])
    return tirx.BufferLoad(buffer, [expression(each) for each in indices])


def prefetch(buffer: Buffer, *indices: Expr | int, level: int = 2) -> Stmt:
    """Prefetch the cache line of an element, which may be past the end of the buffer, into a level of cache."""
    return prefetch_statement(load(buffer, *indices), level)


def allocate(name: str, shape: Sequence[int], dtype: str, scope: str = "global") -> tuple[Expr, Stmt]:
    """A buffer and the statement that allocates it up to the end of the enclosing sequence."""
    buffer = tirx.decl_buffer([index(each, _INDEX) for each in shape], dtype, name, scope=scope)
    return buffer, tirx.AllocBuffer(buffer)


def allocate_tile(name: str, shape: Sequence[int], dtype: str) -> tuple[list[Buffer], list[Stmt]]:
    """A tile that LLVM should keep in registers: a buffer for each of `shape[0]` rows, and their allocations.

    TVM allocates buffers of 1 KiB and more on the heap; LLVM promotes most but not all accesses to them, which wastes
    registers. Smaller buffers become local variables.
    """
    pairs = [allocate(f"{name}{row}", shape[1:], dtype, "local") for row in range(shape[0])]
    return [buffer for buffer, _ in pairs], [allocation for _, allocation in pairs]


def _known(row: Expr | int) -> int:
    assert isinstance(row, int), "the row of a register tile is known when the kernel is written"
    return row


def when(condition: Expr | bool, then: Stmt, otherwise: Stmt | None = None) -> Stmt | None:
    """A branch; if the condition is known, only the branch taken (None if there is none)."""
    if isinstance(condition, bool):
        return then if condition else otherwise
    return tirx.IfThenElse(condition, then, otherwise)


def both(*conditions: Expr | bool) -> Expr | bool:
    """The conjunction, with known conditions folded."""
    unknown = [each for each in conditions if not isinstance(each, bool)]
    if any(each is False for each in conditions):
        return False
    if not unknown:
        return True
    return unknown[0] if len(unknown) == 1 else tirx.all(*unknown)


def lanes_of(start: Expr | int, lanes: int) -> Expr:
    """The indices of `lanes` neighbors starting at `start`."""
    return tirx.Ramp(expression(start), index(1, _INDEX), lanes) if lanes > 1 else expression(start)


def broadcast(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def splat(number: float, dtype: str, lanes: int) -> Expr:
    """A number in every lane."""
    return broadcast(tirx.const(number if "float" in dtype else int(number), dtype), lanes)


def bind(name: str, value: Expr, dtype: str, lanes: int) -> tuple[Expr, Stmt]:
    """A name for a vector value, and the statement that binds it."""
    var = tirx.Var(name, f"{dtype}x{lanes}" if lanes > 1 else dtype)
    return var, tirx.Bind(var, value)


def name_value(name: str, value: Expr, bindings: list[Stmt]) -> Expr:
    """Bind a value to a variable, and append the binding; an int is returned unchanged."""
    if isinstance(value, int):
        return value
    var, binding = bind(name, value, "int64", 1)
    bindings.append(binding)
    return var


def name_opaque(name: str, value: Expr, bindings: list[Stmt]) -> Expr:
    """`name_value` through a buffer, which TVM's passes do not look into.

    They substitute a bound value into each expression that they simplify, again for each loop; positions in images of
    unknown size are nested quotients, and most of a kernel's compile time went there. The contents of a buffer are
    opaque to them, but not to LLVM.
    """
    if isinstance(value, int):
        return value
    buffer, allocation = allocate(f"{name}_held", (1,), "int64", "local")
    bindings += [allocation, store(buffer, value, 0)]
    return name_value(name, load(buffer, 0), bindings)


def loops_over(axes: Sequence[Axis], body: Stmt) -> Stmt:
    """Serial loops over axes of a kernel's own variables, the first outermost."""
    for axis in reversed(axes):
        body = loop(axis.var, axis.extent, body)
    return body


def build_function(kernel: Kernel, statements: Sequence[Stmt], allocations: Sequence[Expr] | None = None) -> PrimFunc:
    """The kernel's PrimFunc with a new body; `allocations` are its buffers, by default its own."""
    buffers = list(kernel.intermediates if allocations is None else allocations)
    block = s_tir.SBlock([], [], [], "root", sequence(statements), alloc_buffers=buffers)
    return kernel.function.with_body(s_tir.SBlockRealize([], True, block))
