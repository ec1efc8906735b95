"""`quantize` in a recipe."""

from __future__ import annotations

from functools import wraps
from typing import Any

from compiler.compression.quantization import quantize
from compiler.compression.techniques.registry import technique
from compiler.errors import OptionError


@technique("quantize")
@wraps(quantize)
def from_recipe(source: Any, **settings: Any) -> Any:
    """As `quantize`; the calibration is needed."""
    if settings.get("calibration") is None:
        raise OptionError("the step 'quantize' needs calibration=", "give inputs as the model will meet them")
    return quantize(source, settings.pop("calibration"), **settings)
