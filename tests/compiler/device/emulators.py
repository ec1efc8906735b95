"""Skipping where this machine lacks a cross compiler or an emulator."""

from __future__ import annotations

import pytest

import targets
from targets import Target


def target_that_runs(name: str, cores: int = 1) -> Target:
    """The target, or a skip that says what to install."""
    target = targets.get(name, cores=cores)
    try:
        target.linker()
        target.compiler()
        target.emulator()
    except targets.ToolchainMissing as error:
        pytest.skip(f"{error.message}: {error.hint}")
    return target
