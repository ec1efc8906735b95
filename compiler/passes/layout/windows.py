"""Padding that follows from sizes (auto_pad SAME): frontends write it as a kernel, and convolutions and poolings absorb
it.

Averages over windows that Relax has no operator for: frontends write them as kernels and say what they are, so that
the layout pass can have the pooling rule compute them.
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
"""Attribute of a kernel that pads spatial axes: "upper" or "lower", where the odd element of each goes."""

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SamePadding:
    """`data` before it is padded with `fill`, and where the odd element goes."""

    data: Expr
    fill: float
    mode: str

    def pads(self, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Pads:
        """(before, after) of each spatial axis; where its size is symbolic, the most of each."""
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
    """Padding by the kernel that pads an operand of the old function; None where there is no such kernel."""
    call = builder.definitions.get(padded) if isinstance(padded, relax.Var) else None
    if call is None or operator_name(call) != "relax.call_tir":
        return None
    attributes = builder.function(call.args[0]).attrs
    if attributes is None or SAME not in attributes:
        return None  # any kernel: its operands may be of any number
    data, fill, *_ = call.args[1].fields
    if not isinstance(fill, GenericConst):
        return None
    return SamePadding(data, float(np.asarray(array_of(fill)).reshape(())), str(attributes[SAME]))


AVERAGE_WINDOW = "tensorwright.average_window"
"""Attribute of a kernel of (data, sizes...) that averages over windows of the spatial axes: an `AverageWindow`."""


@dataclasses.dataclass(frozen=True)
class AverageWindow:
    """A window over the axes after batch and channel, one entry for each axis.

    `before` and `after` are the padding; `same` is "upper" or "lower" where that of symbolic axes follows from their
    sizes (auto_pad SAME), and they hold the most of it then. `count_pad` says whether padding counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    same: str
    count_pad: bool

    def text(self) -> str:
        """The value of the attribute."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, function: PrimFunc) -> AverageWindow | None:
        """Window that a kernel averages over; None where it does not say so."""
        if function.attrs is None or AVERAGE_WINDOW not in function.attrs:
            return None
        entries: dict[str, Any] = json.loads(str(function.attrs[AVERAGE_WINDOW]))
        for name, value in entries.items():
            entries[name] = tuple(value) if isinstance(value, list) else value
        return cls(**entries)
