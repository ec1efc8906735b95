"""ScatterElements, ScatterND and TensorScatter: loops that write one update after another, in order.

Updates to the same place must be applied in sequence, so each kernel is one serial loop over the updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compiler.frontends.onnx import scalars

Combine = Callable[[Any, Any], Any]
_REDUCTIONS: dict[str, Combine] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": scalars.maximum,
    "min": scalars.minimum,
}
