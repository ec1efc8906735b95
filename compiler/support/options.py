"""Options grouped in dataclasses, behind the keyword arguments of public functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

Options = TypeVar("Options")


def options_of(kind: type[Options], values: Mapping[str, object]) -> Options:
    """A dataclass made of those of `values` that it has fields for."""
    return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})  # type: ignore[arg-type]
