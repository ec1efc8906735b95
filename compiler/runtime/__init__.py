"""Runs compiled modules on a device; needs only TVM's runtime library.

Importing this loads neither TVM's compiler nor its Python package, nor torch; the code that runs modules is loaded on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compiler.runtime.loading import load

if TYPE_CHECKING:
    from compiler.runtime.module import Module

__all__ = ["Module", "load"]


def __getattr__(name: str) -> Any:
    if name != "Module":
        raise AttributeError(f"module 'compiler.runtime' has no attribute {name!r}")
    value = globals()[name] = importlib.import_module("compiler.runtime.module").Module
    return value
