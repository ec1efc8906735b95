"""`quantize` in a recipe."""

from collections.abc import Mapping
from typing import Any

from compiler.compression.quantization import quantize
from compiler.compression.quantization.settings import QuantizationOptions
from compiler.compression.techniques.registry import register
from compiler.support.options import options_of


def _check(settings: Mapping[str, Any]) -> None:
    options_of(QuantizationOptions, settings).check(settings["target"], settings["calibration"] is not None)


register("quantize", quantize, _check)
