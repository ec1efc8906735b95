"""Checks at import: Linux, and that no other package named `compiler`, `schedules` or `targets` shadows ours."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("compiler", "schedules", "targets", "tuning_logs")
_SYSTEMS = {"darwin": "macOS", "win32": "Windows", "cygwin": "Windows"}


def check_platform(platform: str = sys.platform) -> None:
    """Raise ImportError unless `platform` (as `sys.platform` names it) is Linux."""
    if platform != "linux":
        raise ImportError(
            f"Tensorwright runs on Linux only, and this is {_SYSTEMS.get(platform, platform)}. "
            f"Use a Linux container or virtual machine (on Windows: WSL 2)."
        )


def check_packages() -> None:
    """Raise ImportError naming the file or folder, when one of the packages that would be imported is not ours."""
    root = Path(__file__).resolve().parent.parent
    for name in _PACKAGES:
        other = _location(_spec(name))
        if other == root / name:
            continue
        if other is None:
            raise ImportError(f"Tensorwright's package {name!r} (expected at {root / name}) was not found.")
        raise ImportError(
            f"Tensorwright's package {name!r} (at {root / name}) is shadowed by {other}. Rename {other.name!r} there, "
            f"or take {other.parent} off sys.path (the folder of the script, the current folder, or PYTHONPATH)."
        )


def _spec(name: str) -> ModuleSpec | None:
    # A module without a specification (put into sys.modules by hand) makes `find_spec` raise a ValueError.
    try:
        return find_spec(name)
    except ValueError:
        return None


def _location(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package (one without __init__.py too), or the file of a module."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin is not None else None
