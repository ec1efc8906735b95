"""Tensors as JSON objects: `x: float32[batch, 64]` has a name, a dtype and a shape of numbers and names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def tensor_fields(text: str) -> dict[str, Any]:
    """Name, `dtype` and `shape` of a tensor given as text; other values have `kind` instead of these."""
    name, _, described = text.rpartition(": ")
    if not described.endswith("]"):
        return {"name": name, "kind": described}
    return {"name": name, **type_fields(described)}


def type_fields(text: str) -> dict[str, Any]:
    """`dtype` and `shape` of `float32[batch, 64]`; symbolic sizes are names or formulas, unknown ones null."""
    dtype, _, sizes = text.partition("[")
    return {"dtype": dtype, "shape": [_size(size) for size in _divided(sizes.removesuffix("]"))]}


def named_types(types: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The fields of texts like `float32[1, 64]`, by the names of the tensors."""
    return {name: type_fields(text) for name, text in types.items()}


def tensor_list(texts: Iterable[str]) -> list[dict[str, Any]]:
    """The fields of each tensor, in order."""
    return [tensor_fields(text) for text in texts]


def _size(text: str) -> int | str | None:
    if text == "?":
        return None
    return int(text) if text.isdecimal() else text


def _divided(sizes: str) -> list[str]:
    """Split sizes at commas, except those in parentheses (`min(a, b)`)."""
    fields, depth = [""], 0
    for character in sizes:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            fields.append("")
        else:
            fields[-1] += character
    return [each.strip() for each in fields if each.strip()]
