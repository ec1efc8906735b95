"""The `dynamic_shapes` of `torch.export` without dimensions that a model fixes, as code to paste."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Fixed = Callable[[str, Any], bool]
"""True for a fixed dimension, given its position as torch writes it ("L['x'].size()[1]") and its `Dim`."""

_DYNAMIC = "torch.export.Dim.DYNAMIC"


def remaining_dimensions(dynamic_shapes: Any, names: Sequence[str], fixed: Fixed) -> str | None:
    """ "dynamic_shapes=..." with the dimensions that are not fixed; None if none remains.

    Args:
        names: the argument names of `forward`, in order.
    """
    if isinstance(dynamic_shapes, Mapping):
        parts = {name: _left(each, f"L[{name!r}]", fixed) for name, each in dynamic_shapes.items()}
        text = _mapping(parts)
    elif isinstance(dynamic_shapes, list | tuple):
        parts = {name: _left(each, f"L[{name!r}]", fixed) for name, each in zip(names, dynamic_shapes, strict=False)}
        text = _sequence(dynamic_shapes, list(parts.values()))
    else:
        return None
    return f"dynamic_shapes={text}" if _DYNAMIC in text else None


def dimension_names(dynamic_shapes: Any, names: Sequence[str]) -> dict[str, str]:
    """Map positions as torch writes them ("L['x'].size()[1]") to names of `Dim`s; `names`: as above."""
    dimensions: dict[str, str] = {}

    def note(size: str, dim: Any) -> bool:
        name = getattr(getattr(dim, "root", dim), "__name__", "")  # "n" of 4 * Dim("n"), too
        if name.isidentifier():
            dimensions[size] = name
        return False

    remaining_dimensions(dynamic_shapes, names, note)
    return dimensions


def fixed_by(report: str) -> Fixed:
    """Return the dimensions that a `torch.export` report calls "specialized": by position, or by the name of a
    `Dim`."""
    marked = set(re.findall(r"You marked (.+?) as dynamic", report))
    return lambda size, dim: size in marked or getattr(dim, "__name__", None) in marked


def _left(value: Any, path: str, fixed: Fixed) -> str:
    if isinstance(value, Mapping) and all(isinstance(axis, int) for axis in value):
        sizes = [axis for axis, dim in value.items() if _is_open(dim) and not fixed(f"{path}.size()[{axis}]", dim)]
        return _mapping(dict.fromkeys(sizes, _DYNAMIC)) if sizes else "None"
    if isinstance(value, Mapping):
        return _mapping({key: _left(each, f"{path}[{key!r}]", fixed) for key, each in value.items()})
    if not isinstance(value, list | tuple):
        return "None"
    if any(map(_is_open, value)):  # one entry per axis
        return _left(dict(enumerate(value)), path, fixed)
    return _sequence(value, [_left(each, f"{path}[{index}]", fixed) for index, each in enumerate(value)])


def _is_open(dim: Any) -> bool:
    return dim is not None and not isinstance(dim, int | Mapping | list | tuple) and "STATIC" not in str(dim)


def _mapping(parts: Mapping[Any, str]) -> str:
    return "{" + ", ".join(f"{key!r}: {text}" for key, text in parts.items()) + "}"


def _sequence(like: Sequence[Any], parts: Sequence[str]) -> str:
    if isinstance(like, list):
        return f"[{', '.join(parts)}]"
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
