"""Builds PrimFuncs from loops: what rules that emit code anew share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schedules.ir.expression import index
from schedules.ir.stages import Axis, Kernel
from schedules.ir.tir import s_tir, tirx

SERIAL = tirx.ForKind.SERIAL
PARALLEL = tirx.ForKind.PARALLEL
VECTORIZED = tirx.ForKind.VECTORIZED
UNROLLED = tirx.ForKind.UNROLLED


def sequence(statements: Sequence[Any]) -> Any:
    """One statement out of several."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def loop(var: Any, extent: Any, body: Any, kind: Any = SERIAL) -> Any:
    """A loop from 0; the extent may be an int."""
    extent = index(extent, str(var.ty.dtype)) if isinstance(extent, int) else extent
    return tirx.For(var, index(0, str(var.ty.dtype)), extent, kind, body)


def nest(axes: Sequence[Axis], body: Any, *, parallel: bool = False) -> Any:
    """Loops over axes, the first outermost; `parallel` makes that one parallel."""
    for position in reversed(range(len(axes))):
        kind = PARALLEL if parallel and position == 0 else SERIAL
        body = loop(axes[position].var, axes[position].extent, body, kind)
    return body


def build_function(kernel: Kernel, statements: Sequence[Any], allocations: Sequence[Any] | None = None) -> Any:
    """The kernel's PrimFunc with a new body; `allocations` are its function-wide buffers (the kernel's own
    by default)."""
    buffers = list(kernel.intermediates if allocations is None else allocations)
    block = s_tir.SBlock([], [], [], "root", sequence(statements), alloc_buffers=buffers)
    return kernel.function.with_body(s_tir.SBlockRealize([], True, block))
