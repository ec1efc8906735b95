"""Buffers of any rank, indexed by offsets, in kernels that are written statement by statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from schedules.ir.tvm_types import Buffer, Expr, Index


class FlatBuffer:
    """A row-major buffer: `buffer[offset]` loads an element, `buffer[offset] = value` emits a store. Indices, one for
    each dimension, serve as well.

    The offset becomes the index of the last dimension, which it may exceed, and the others are 0. TVM's `buffer_proxy`
    divides it by each size, and those divisions remain in the code if a size is dynamic.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.dtype: Any = buffer.dtype
        self.shape: Any = buffer.shape

    def __getitem__(self, at: Index | tuple[Index, ...]) -> Expr:
        return tirx.BufferLoad(self._buffer, self._indices(at))

    def __setitem__(self, at: Index | tuple[Index, ...], value: Expr) -> None:
        T.buffer_store(self._buffer, value, self._indices(at))

    def _indices(self, at: Index | tuple[Index, ...]) -> Sequence[Index]:
        if isinstance(at, tuple):
            return at
        rank = len(self.shape)
        return [*(tirx.const(0, "int64") for _ in range(rank - 1)), at] if rank else []
