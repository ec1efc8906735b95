"""Tensorwright: compile trained models to small, fast, verified modules.

The public API; each name is loaded when first used, so that a device which only runs modules never loads the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compiler._shadowing import check_sibling_packages
from compiler.errors import TensorwrightError

if TYPE_CHECKING:
    from compiler.driver import compile
    from compiler.runtime import load

__version__ = "0.1.0"

_HOME = {
    "compile": "compiler.driver",
    "load": "compiler.runtime",
}

__all__ = ["TensorwrightError", "__version__", "compile", "load"]

check_sibling_packages()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compiler' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
