"""The settings of `quantize`, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import targets
from compiler.compression.quantization.accuracy import check_max_drop
from compiler.compression.quantization.calibrators.registry import get_calibrator
from compiler.compression.quantization.scheme import scheme_for
from compiler.compression.quantization.schemes.registry import STATIC, SchemeOptions, make_scheme, scheme_names
from compiler.errors import OptionError
from schedules.instructions.int8_dot import multiplies_bytes

TECHNIQUES = ("bias-correction", "equalization", "smoothing", "gptq", "adaround", "int16")
_SCALES = ("float16", "float32")


def check_settings(
    calibration: Iterable[object] | None,
    scheme: str,
    max_drop: float,
    target: targets.Target,
    method: str,
    activations: str | None,
    per_channel: bool | None,
    group: int,
    scales: str,
    techniques: Collection[str],
    in_float: Collection[str],
) -> None:
    """Raises OptionError for what `quantize` cannot do; its names of layers in `in_float` are the model's to know."""
    for name, given in (("techniques", techniques), ("in_float", in_float)):
        if isinstance(given, str) or not isinstance(given, Collection):
            raise OptionError(f"{name}={given!r}", "give a sequence of names")
    unknown = [str(each) for each in techniques if each not in TECHNIQUES]
    if unknown:
        raise OptionError(f"techniques= has {', '.join(unknown)}", f"there are {', '.join(TECHNIQUES)}")
    if "int16" in techniques and (target.quantized_everywhere or not multiplies_bytes(target.machine)):
        raise OptionError(
            f"techniques= has int16, and {target.name} has no instruction for products of bytes",
            "leave it out: 16-bit activations would be slower than float32 there",
        )
    check_max_drop(max_drop)
    if scales not in _SCALES:
        raise OptionError(f"scales={scales!r}", f"use one of {', '.join(_SCALES)}")
    get_calibrator(method)
    scheme_for(target, activations, per_channel)
    if scheme != STATIC:
        make_scheme(scheme, SchemeOptions(group, scales, "nearest"))
    elif calibration is None:
        others = ", ".join(each for each in scheme_names() if each != STATIC)
        raise OptionError("static-int8 needs calibration=", f"give some inputs, or use another scheme: {others}")
