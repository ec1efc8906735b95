"""Vectors assembled from lanes of other vectors: the source of each lane of a block, and the permutations.

A block is the last dimension of what a stage stores, when that fits a vector: channels in blocks of channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schedules.ir.expression import constant_int, index, substitute, uses
from schedules.ir.stages import Stage, is_compact, shape_of
from schedules.ir.tir import Buffer, Expr, Var, tirx, tvm
from schedules.machine import Machine, dtype_bits

Part = tuple[Expr, dict[int, int]]
"""A vector, and which lane of it is which lane of the block: the lane in the block, the lane in the vector."""
_LEAST_LANES = 4
_OPERATIONS = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: lambda a, b: a // b,
    tirx.FloorMod: lambda a, b: a % b,
}


def block_size(stage: Stage, machine: Machine) -> int | None:
    """The size of the block that a stage stores to; None when it stores to none."""
    if stage.store is None or not is_compact(stage.store.buffer) or not shape_of(stage.store.buffer):
        return None
    size = shape_of(stage.store.buffer)[-1]
    lanes = machine.vector_bits // dtype_bits(str(stage.store.buffer.dtype))
    fits = isinstance(size, int) and size >= _LEAST_LANES and size in {lanes >> shift for shift in range(8)}
    return size if fits else None


def picked(parts: Sequence[Part], size: int) -> Expr:
    """A vector of `size` lanes out of vectors as long. A lane that no part holds is anything."""
    (vector, chosen), *others = parts
    picks = [chosen.get(lane, lane) for lane in range(size)]
    for other, places in others or [(vector, chosen)]:
        picks = [size + places[lane] if lane in places else pick for lane, pick in enumerate(picks)]
        vector, picks = tirx.Shuffle([vector, other], picks), list(range(size))
    return vector


def parts_of(
    value: Expr, var: Var | None, lanes: Sequence[int], size: int, known: Mapping[Var, int]
) -> list[Part] | None:
    """Moves of a value into some lanes of a block: the first of `lanes` is where `var` (None: a single lane) is 0.

    `known` are the values of other variables. None where the value is not a constant or load, where its place in the
    last dimension depends on others, or where too many vectors would have to be read.
    """
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return [(tirx.Broadcast(value, size), dict.fromkeys(lanes, 0))]
    if not isinstance(value, tvm.ir.TensorLoad):
        return None
    mapping = {other: index(number, str(other.ty)) for other, number in known.items()}
    if var is None or not uses(value, var):
        return [(tirx.Broadcast(substitute(value, mapping), size), dict.fromkeys(lanes, 0))]
    width = shape_of(value.source)[-1]
    if not is_compact(value.source) or not isinstance(width, int) or width < size:
        return None
    groups: dict[tuple[int | None, ...], dict[int, int]] = {}
    for number, lane in enumerate(lanes):
        outer, place = _place(value.indices, var, {**known, var: number})
        if place is None:
            return None
        groups.setdefault(outer, {})[lane] = place
    parts = []
    for outer, places in groups.items():
        points = [
            substitute(point, mapping) if constant is None else index(constant, str(point.ty))
            for point, constant in zip(value.indices, outer, strict=False)
        ]
        for start, share in _windows(places, size, width):
            vector = run_of_lanes(value.source, points, index(start, str(value.indices[-1].ty)), size)
            parts.append((vector, {lane: at - start for lane, at in share.items()}))
    return parts if len(parts) <= size // 2 else None


def _place(indices: Sequence[Expr], var: Var, values: Mapping[Var, int]) -> tuple[tuple[int | None, ...], int | None]:
    """The outer indices where they depend on `var`, and the place in the last dimension: None when not constant."""
    *outer, last = indices
    found = tuple(_value(point, values) if uses(point, var) else None for point in outer)
    if any(each is None and uses(point, var) for each, point in zip(found, outer, strict=True)):
        return found, None
    return found, _value(last, values)


def _windows(places: Mapping[int, int], size: int, width: int) -> list[tuple[int, dict[int, int]]]:
    """Vectors of `size` neighbours within a row of `width` that hold these places: where each begins, and its share."""
    found: list[tuple[int, dict[int, int]]] = []
    rest = dict(places)
    while rest:
        start = min([*rest.values(), width - size])
        share = {lane: at for lane, at in rest.items() if at < start + size}
        rest = {lane: at for lane, at in rest.items() if lane not in share}
        found.append((start, share))
    return found


def _value(expr: Expr, values: Mapping[Var, int]) -> int | None:
    """The number that index arithmetic comes to; None when that is not known."""
    known = constant_int(expr)
    if isinstance(known, int):
        return known
    if isinstance(expr, tvm.ir.Var):
        return next((value for var, value in values.items() if var.same_as(expr)), None)
    if isinstance(expr, tirx.Cast):
        return _value(expr.value, values)
    operation = _OPERATIONS.get(type(expr))
    if operation is None:
        return None
    left, right = _value(expr.a, values), _value(expr.b, values)
    return None if left is None or right is None else operation(left, right)


def run_of_lanes(buffer: Buffer, outer: Sequence[Expr], start: Expr, size: int) -> Expr:
    """`size` neighbours in the last dimension."""
    return tirx.BufferLoad(buffer, [*outer, ramp(start, size)])


def ramp(start: Expr, size: int) -> Expr:
    """The places from `start` on."""
    return tirx.Ramp(start, index(1, str(start.ty)), size)
