"""Tensorwright: compile trained models to small, fast, verified modules.

The public API, handed on from the package `compiler`; each name is loaded when first used.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler import *  # noqa: F403

# Another package named `compiler` may come first on sys.path, so the check is run from our file and not imported.
runpy.run_path(str(Path(__file__).resolve().parent.parent / "compiler" / "_shadowing.py"))["check_packages"]()

import compiler as _compiler  # noqa: E402

__version__ = _compiler.__version__
__all__ = _compiler.__all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tensorwright' has no attribute {name!r}")
    return getattr(_compiler, name)


def __dir__() -> list[str]:
    return sorted(__all__)
