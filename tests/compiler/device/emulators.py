"""Targets whose cross compiler and emulator this machine has."""

from __future__ import annotations

import targets
from targets import Target


def target_that_runs(name: str, cores: int = 1, *, programs: bool = True) -> Target:
    """The target, if modules for it can be built and run here; with `programs`, C++ programs too.

    Raises ToolchainMissing, for which tests skip (tests/conftest.py).
    """
    target = targets.get(name, cores=cores)
    target.linker()
    if programs:
        target.compiler()
    target.emulator()
    return target
