"""Interleaved stores: channels last, of few channels; pixel shuffles; what is stacked along a last axis.

`out[x, c] = a[c, x]` of 3 channels reads a vector of each and stores three whole vectors, whose lanes are permutations
of them, in place of single elements three apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedules.ir.access import Access, accesses_of
from schedules.ir.expression import constant_int, index, nodes
from schedules.ir.index_arithmetic import with_plain_indices
from schedules.ir.inline import has_branch
from schedules.ir.stages import Axis, Stage, is_compact, shape_of
from schedules.ir.tir import Index, Stmt, structural_equal, tirx
from schedules.stages.collapsed_loops import Loop, LoopNest
from schedules.stages.loop_splitting import split_axis

_TURNS = (2, 3, 4)
_PIXELS = (2, 3)  # larger ones are taken apart by `split_axes`
_LEAST_EXTENT = 4


def interleaved_count(stage: Stage) -> int:
    """Number of interleaved stores of a stage; 1 for any other stage."""
    return len(stage.body.seq) if isinstance(stage.body, tirx.SeqStmt) else 1


def interleaved_axis(nest: LoopNest) -> Loop | None:
    """The loop along which stores are interleaved, and what they store lies side by side or is the same; None when the
    nest is none of `interleave`'s."""
    turns = interleaved_count(nest.stage)
    if turns not in _TURNS or not _take_turns(nest.stage):
        return None
    return next((loop for loop in reversed(nest.spatial) if _serves(nest.accesses, loop.strides, turns)), None)


def _take_turns(stage: Stage) -> bool:
    stores = list(stage.body.seq)
    if any(not isinstance(store, tirx.BufferStore) or has_branch(store) for store in stores) or stage.reduction:
        return False
    first = stores[0]
    same = all(store.buffer.same_as(first.buffer) for store in stores)
    written = any(access.buffer.same_as(first.buffer) for access in accesses_of(stage.body) if not access.is_store)
    return same and not written and is_compact(first.buffer)


def _serves(accesses: Sequence[Access], strides: Sequence[Index | None], turns: int) -> bool:
    pairs = list(zip(accesses, strides, strict=True))
    loads = [stride for access, stride in pairs if not access.is_store]
    return all(stride == turns for access, stride in pairs if access.is_store) and set(loads) <= {0, 1} and 1 in loads


def interleave(pieces: Sequence[Stage]) -> list[Stage]:
    """The parts of a stage, those whose stores are interleaved joined into one part with all the stores."""
    done: list[Stage] = []
    waiting: list[Stage] = []
    for piece in pieces:
        if waiting and not _follows(waiting, piece):
            done += waiting
            waiting = []
        turn = _place(piece)
        if turn is None or turn[0] != len(waiting):
            done.append(_by_turns(piece) or piece)
            continue
        waiting.append(piece)
        if len(waiting) == turn[1]:
            whole = _whole(waiting[0], [each.body for each in waiting], piece.axes)
            done += waiting if whole is None else [whole]
            waiting = []
    return done + waiting


def _place(stage: Stage) -> tuple[int, int] | None:
    """(index, count): which element of a short last dimension a stage stores, and of how many."""
    store = stage.store
    if store is None or stage.reduction or not is_compact(store.buffer) or not store.indices:
        return None
    turn, turns = constant_int(store.indices[-1]), shape_of(store.buffer)[-1]
    return (turn, turns) if isinstance(turn, int) and turns in _TURNS else None


def _follows(waiting: Sequence[Stage], piece: Stage) -> bool:
    """True if a stage stores the next element of that dimension, at the same places as those before."""
    first, other = waiting[0].body, piece.store
    if other is None or _place(piece) != (len(waiting), shape_of(first.buffer)[-1]):
        return False
    if len(piece.axes) != len(waiting[0].axes):
        return False
    pairs = zip(waiting[0].axes, piece.axes, strict=True)
    if not all(mine is its or mine.extent == its.extent == 1 for mine, its in pairs):
        return False
    same = structural_equal(list(first.indices)[:-1], list(other.indices)[:-1])
    return bool(other.buffer.same_as(first.buffer)) and bool(same)


def _by_turns(stage: Stage) -> Stage | None:
    """A stage with an axis of a few steps along which it stores side by side, as one store for each step."""
    store = stage.store
    if store is None or stage.reduction or not is_compact(store.buffer):
        return None
    target = Access(store.buffer, tuple(store.indices), True)
    for position, axis in enumerate(stage.axes):
        if not isinstance(axis.extent, int) or target.stride(axis.var) != 1:
            continue
        if axis.extent in _TURNS:
            return _one_store_each(stage, position)
        for turns in _divisors(stage):
            if axis.extent % turns == 0:
                split = with_plain_indices(split_axis(stage, position, turns)[0])
                return _one_store_each(split, position + 1)
    return None


def _divisors(stage: Stage) -> list[int]:
    """Small divisors of an index."""
    points = [point for access in accesses_of(stage.body) for point in access.indices]
    factors = [constant_int(each.b) for point in points for each in nodes(point, tirx.FloorDiv, tirx.FloorMod)]
    return sorted({factor for factor in factors if isinstance(factor, int) and factor in _PIXELS})


def _one_store_each(stage: Stage, position: int) -> Stage | None:
    axis = stage.axes[position]
    steps = [
        with_plain_indices(stage.with_axes(position, [], index(step, str(axis.var.ty)))) for step in range(axis.extent)
    ]
    return _whole(steps[0], [step.body for step in steps], steps[0].axes)


def _whole(stage: Stage, bodies: Sequence[Stmt], axes: Sequence[Axis]) -> Stage | None:
    """The stores as one stage; None where they are not interleaved along any of its axes."""
    whole = Stage(stage.name, tuple(axes), tirx.SeqStmt(list(bodies)), None, stage.annotations)
    if not _take_turns(whole):
        return None
    accesses = accesses_of(whole.body)
    for axis in axes:
        long = not isinstance(axis.extent, int) or axis.extent >= _LEAST_EXTENT
        if long and _serves(accesses, [access.stride(axis.var) for access in accesses], len(bodies)):
            return whole
    return None
