"""`distill` in a recipe."""

from __future__ import annotations

from functools import wraps
from typing import Any

from compiler.compression.distillation import distill
from compiler.compression.techniques.registry import technique
from compiler.errors import OptionError


@technique("distill")
@wraps(distill)
def from_recipe(source: Any, **settings: Any) -> Any:
    """As `distill`, with the teacher and the batches among the settings."""
    if "batches" not in settings:
        raise OptionError(
            "the step 'distill' needs batches=", "compress(..., distill={'teacher': net, 'batches': data})"
        )
    return distill(source, settings.pop("teacher", None), settings.pop("batches"), **settings)
