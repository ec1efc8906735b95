"""The settings of `quantize`, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import targets
from compiler.compression.quantization.calibration import get_calibrator, scheme_for
from compiler.compression.quantization.layer_choice import PREDICTED
from compiler.compression.quantization.schemes import STATIC, SchemeOptions, make_scheme, scheme_names
from compiler.errors import OptionError
from compiler.support.options import check_choices
from compiler.support.precision import type_name
from schedules.instructions.dot_products.table import multiplies_bytes

TECHNIQUES = ("bias-correction", "equalization", "smoothing", "gptq", "adaround", "int16")
DEFAULT_TECHNIQUES = ("bias-correction", "gptq")
_OF_TYPES = {"int8": STATIC, "int4": "weight-int4"}
_SCALES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """Options of `quantize`, which documents the fields."""

    scheme: str = STATIC
    method: str = "mse"
    activations: str | None = None
    per_channel: bool | None = None
    group: int = 64
    scales: str = "float16"
    techniques: Collection[str] = DEFAULT_TECHNIQUES
    in_float: Collection[str] = ()
    keep_slower: bool = False
    decide: str | Path | Mapping[str, str] = PREDICTED

    def __post_init__(self) -> None:
        named = type_name(self.scheme)
        object.__setattr__(self, "scheme", _OF_TYPES.get(named, named))
        object.__setattr__(self, "scales", type_name(self.scales))

    def layerwise(self, calibrated: bool) -> SchemeOptions:
        """Options of a weight scheme; without calibration, rounding is to the nearest."""
        better = next((each for each in ("adaround", "gptq") if each in self.techniques), "nearest")
        return SchemeOptions(self.group, self.scales, better if calibrated else "nearest")

    def check(self, target: targets.Target, calibrated: bool) -> None:
        """Raise OptionError for invalid options; the layer names in `in_float` are checked against the model later."""
        self._check_techniques(target)
        check_choices(self, scales=_SCALES)
        get_calibrator(self.method)
        scheme_for(target, self.activations, self.per_channel)
        if self.scheme != STATIC:
            make_scheme(self.scheme, self.layerwise(calibrated=False))
        elif not calibrated:
            others = ", ".join(each for each in scheme_names() if each != STATIC)
            raise OptionError("static-int8 needs calibration=", f"give some inputs, or use another scheme: {others}")

    def _check_techniques(self, target: targets.Target) -> None:
        for name, given in (("techniques", self.techniques), ("in_float", self.in_float)):
            if isinstance(given, str) or not isinstance(given, Collection):
                raise OptionError(f"{name}={given!r}", "give a sequence of names")
        unknown = [str(each) for each in self.techniques if each not in TECHNIQUES]
        if unknown:
            raise OptionError(f"techniques= has {', '.join(unknown)}", f"there are {', '.join(TECHNIQUES)}")
        if "int16" in self.techniques and (target.quantized_everywhere or not multiplies_bytes(target.machine)):
            raise OptionError(
                f"techniques= has int16, and {target.name} has no byte dot product instruction",
                "leave it out: 16-bit activations would be slower than float32 there",
            )
