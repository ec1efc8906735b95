"""Techniques by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from compiler.errors import OptionError
from compiler.passes.registry import did_you_mean

# Given a model and keyword arguments, a compressed model with a report.
Technique = Callable[..., Any]
_TECHNIQUES: dict[str, Technique] = {}
_discovered = False


def technique(name: str) -> Callable[[Technique], Technique]:
    """Register the decorated function under the name that recipes use."""

    def register(function: Technique) -> Technique:
        _TECHNIQUES[name] = function
        return function

    return register


def techniques() -> dict[str, Technique]:
    """All of them."""
    global _discovered
    if not _discovered:
        _discovered = True
        package = importlib.import_module("compiler.compression.techniques")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_TECHNIQUES.items()))


def get_technique(name: str) -> Technique:
    """Raises OptionError with near names."""
    known = techniques()
    if name not in known:
        raise OptionError(f"no technique is named {name!r}", did_you_mean(name, known))
    return known[name]
