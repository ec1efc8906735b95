"""The precisions of floating-point operators, with their common aliases."""

from __future__ import annotations

from compiler.errors import OptionError

PRECISIONS = ("float32", "bf16", "float16")
_ALIASES = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "bfloat16": "bf16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}
_INTEGERS = frozenset({"int8", "i8", "uint8", "int4"})


def precision_of(name: str) -> str:
    """The one of `PRECISIONS` that a name means; raises OptionError for any other."""
    wanted = _ALIASES.get(name, name)
    if wanted in PRECISIONS:
        return wanted
    if name in _INTEGERS:
        hint = (
            "models become integers by calibration: tensorwright.quantize(model, samples), or `tensorwright quantize`"
        )
    else:
        hint = f"use one of {', '.join(PRECISIONS)}"
    raise OptionError(f"precision {name!r} is not supported", hint)
