"""A module from a file that is open."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.artifact import Key
from compiler.artifact.artifact import read_opened
from compiler.artifact.opening import OpenedModule
from compiler.runtime.module import Module


def read_module(opened: OpenedModule, trusted_keys: Sequence[Key] | None, threads: int | None) -> Module:
    """See `compiler.runtime.loading.load`."""
    return Module(read_opened(opened, trusted_keys), threads=threads)
