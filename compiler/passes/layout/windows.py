"""Size-dependent padding (auto_pad SAME): frontends write it as a kernel, and convolutions and poolings absorb it.

Averages over windows without a Relax operator: frontends write them as annotated kernels, so that the layout pass can
compute them with the pooling rule.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from compiler.passes.layout.values import LayoutBuilder
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.matching import array_of, shape_of
from schedules.ir.tvm_types import Expr, PrimFunc

SAME = "tensorwright.same_padding"
"""Attribute of a kernel that pads spatial axes: "upper" or "lower", the side of the odd element."""

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SamePadding:
    """`data` before padding with `fill`, and the side of the odd element."""

    data: Expr
    fill: float
    mode: str

    def pads(self, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Pads:
        """Return (before, after) for each spatial axis; the maximum of each if its size is symbolic."""
        sizes = (shape_of(self.data) or [])[2:]
        result = []
        for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = (window - 1) * dilation
            if isinstance(size, int):
                total = max((-(-size // stride) - 1) * stride + total + 1 - size, 0)
            half, rest = total // 2, total - total // 2
            result.append((half, rest) if self.mode == "upper" else (rest, half))
        return tuple(result)


def same_padding(builder: LayoutBuilder, padded: Expr) -> SamePadding | None:
    """Return the padding applied by the kernel that computes an operand of the old function; None for other kernels."""
    call = builder.definitions.get(padded) if isinstance(padded, relax.Var) else None
    if call is None or operator_name(call) != "relax.call_tir":
        return None
    attributes = builder.function(call.args[0]).attrs
    if attributes is None or SAME not in attributes:
        return None  # an unrelated kernel may have any number of operands
    data, fill, *_ = call.args[1].fields
    if not isinstance(fill, GenericConst):
        return None
    return SamePadding(data, float(np.asarray(array_of(fill)).reshape(())), str(attributes[SAME]))


AVERAGE_WINDOW = "tensorwright.average_window"
"""Attribute of a kernel of (data, sizes...) that averages over windows of the spatial axes: an `PoolWindow`."""


@dataclasses.dataclass(frozen=True)
class PoolWindow:
    """A pooling window over the axes after batch and channel, one entry for each axis.

    `before` and `after` are the padding; `same` is "upper" or "lower" if the padding of symbolic axes depends on their
    sizes (auto_pad SAME); `before` and `after` are then its maxima. `count_pad`: padding counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    same: str
    count_pad: bool

    def text(self) -> str:
        """Return the value of the attribute."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, function: PrimFunc) -> PoolWindow | None:
        """Return the window that a kernel averages over; None without the attribute."""
        if function.attrs is None or AVERAGE_WINDOW not in function.attrs:
            return None
        entries: dict[str, Any] = json.loads(str(function.attrs[AVERAGE_WINDOW]))
        for name, value in entries.items():
            entries[name] = tuple(value) if isinstance(value, list) else value
        return cls(**entries)
