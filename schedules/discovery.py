"""Imports every module of a package, so that its registrations run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterator
from types import ModuleType


def modules_of(package: str, skip: Collection[str] = ()) -> Iterator[ModuleType]:
    """Every module below `package`, at any depth, ordered by name.

    Args:
        package: its dotted name.
        skip: dotted names of modules and packages that are not imported, nor anything below them.
    """
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if info.name in skip:
            continue
        yield importlib.import_module(info.name)
        if info.ispkg:
            yield from modules_of(info.name, skip)


def import_all(package: str) -> None:
    """Import every module below `package`."""
    for _ in modules_of(package):
        pass
