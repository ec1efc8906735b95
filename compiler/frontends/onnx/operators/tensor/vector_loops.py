"""Loops over independent elements in kernels that are written statement by statement; emitted into the current
`IRBuilder`. Processors run them in vectors, graphics processors one element on each thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from schedules.annotations import SERIAL_REASON
from schedules.instructions.element_loops import IN_CHUNKS, IN_VECTORS, VECTOR_DTYPES
from schedules.ir.tvm_types import Expr

_LEAST = 16  # iterations: fewer are not worth vectors


def in_vectors(extent: Expr, dtype: object, body: Callable[[Expr], None]) -> None:
    """Run the body, which stores one element of that type, for 0 up to `extent` in any order."""
    _emit(extent, dtype, body, IN_VECTORS)


def for_each(count: Expr, dtype: object, body: Callable[[Expr], None]) -> None:
    """Like `in_vectors`, for loops that no other surrounds: threads may share them."""
    _emit(count, dtype, body, IN_CHUNKS)


def in_sequence(extent: Expr, reason: str) -> Any:
    """A serial loop from 0 whose iterations need the ones before them; `reason` is what reports say."""
    return T.serial(0, extent, annotations={SERIAL_REASON: reason})


def _emit(extent: Expr, dtype: object, body: Callable[[Expr], None], mark: str) -> None:
    is_short = isinstance(extent, tirx.IntImm) and int(extent) < _LEAST
    annotations = None if is_short or str(dtype) not in VECTOR_DTYPES else {mark: True}
    with T.serial(0, extent, annotations=annotations) as element:
        body(element)
