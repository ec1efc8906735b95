"""Packages that are installed only with an extra."""

from __future__ import annotations

import importlib
from typing import Any

from compiler.errors import MissingDependencyError
from targets.extras import install_command


def optional_module(name: str, extra: str, purpose: str) -> Any:
    """Import a package that belongs to an extra. Raises MissingDependencyError if the package is not installed.
    `purpose`: what the package does, for example "reads GGUF files"."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"the package {name!r}, which {purpose}, is not installed", install_command(extra)
        ) from error
