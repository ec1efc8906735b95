"""Averages over windows that Relax has no operator for: frontends write them as kernels and say what they are, so that
the layout pass can have the pooling rule compute them."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PrimFunc

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
