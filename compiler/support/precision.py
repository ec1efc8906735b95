"""The precisions of floating-point operators, with their common aliases."""

from __future__ import annotations

from compiler.errors import OptionError

PRECISIONS = ("float32", "bf16", "float16")
_OTHER_NAMES = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "i8": "int8",
    "q8": "int8",
    "i4": "int4",
    "q4": "int4",
}
_INTEGERS = frozenset({"int8", "uint8", "int4"})


def type_name(name: str) -> str:
    """The canonical name of a numeric type ("bfloat16" for "bf16"), for all options that take one; other names are
    kept."""
    return _OTHER_NAMES.get(name, name)


def precision_name(name: str) -> str:
    """The same, but "bf16" for bfloat16, which is the name of the precision."""
    return "bf16" if type_name(name) == "bfloat16" else type_name(name)


def precision_of(name: str) -> str:
    """The precision in `PRECISIONS` for a name; raises OptionError for any other name."""
    precision = precision_name(name)
    if precision in PRECISIONS:
        return precision
    if precision in _INTEGERS:
        hint = "quantize the model to integers: tensorwright.quantize(model, samples), or `tensorwright quantize`"
    else:
        hint = f"use one of {', '.join(PRECISIONS)}"
    raise OptionError(f"precision {name!r} is not supported", hint)
