"""Techniques by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.errors import OptionError
from compiler.passes.registry import did_you_mean
from schedules.discovery import import_all

Check = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Technique:
    """A step of a recipe.

    Attributes:
        run: given a model and keyword arguments, a compressed model with a report.
        check: raises OptionError for arguments of `run`, all of them by name, that it cannot do whatever the model is;
            what has no default is None where it was not given.
    """

    run: Callable[..., Any]
    check: Check


_TECHNIQUES: dict[str, Technique] = {}
_discovered = False


def register(name: str, run: Callable[..., Any], check: Check) -> None:
    """Let recipes use `run` under that name."""
    _TECHNIQUES[name] = Technique(run, check)


def techniques() -> dict[str, Technique]:
    """All of them."""
    global _discovered
    if not _discovered:
        _discovered = True
        import_all("compiler.compression.techniques")
    return dict(sorted(_TECHNIQUES.items()))


def get_technique(name: str) -> Technique:
    """Raises OptionError with near names."""
    known = techniques()
    if name not in known:
        raise OptionError(f"no technique is named {name!r}", did_you_mean(name, known))
    return known[name]
