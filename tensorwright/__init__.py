"""Tensorwright: compile trained models to small, fast, verified modules.

The public API, handed on from the package `compiler`; each name is loaded when first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler import *  # noqa: F403

# Another package named `compiler` may come first on sys.path, so the check is run from our file and not imported.
runpy.run_path(str(Path(__file__).resolve().parent.parent / "compiler" / "_shadowing.py"))["check_packages"]()

import compiler as _compiler  # noqa: E402


class _Submodules(MetaPathFinder, Loader):
    """Makes `import tensorwright.generation` the module `compiler.generation`, as of all modules of the public API."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != __name__ or rest.split(".")[0] not in __all__:
            return None
        try:
            known = importlib.util.find_spec(f"compiler.{rest}") is not None
        except ModuleNotFoundError:
            known = False
        return ModuleSpec(name, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(module.__name__.replace(__name__, "compiler", 1))


sys.meta_path.append(_Submodules())

__version__ = _compiler.__version__
__all__ = _compiler.__all__


if not TYPE_CHECKING:  # type checkers know the names by the imports above, and report any other

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'tensorwright' has no attribute {name!r}")
        return getattr(_compiler, name)


def __dir__() -> list[str]:
    return sorted(__all__)
