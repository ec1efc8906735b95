"""`host`: this machine, detected."""

from __future__ import annotations

from collections.abc import Callable

from targets import cpuinfo
from targets.cpu import aarch64, x86
from targets.errors import TargetError
from targets.target import Target

_FAMILIES: dict[str, Callable[[int | None], Target]] = {"x86_64": x86.host, "aarch64": aarch64.host}


def host(cores: int | None = None) -> Target:
    """The target of this machine. Raises TargetError if its architecture cannot be detected."""
    make = _FAMILIES.get(cpuinfo.architecture())
    if make is None:
        raise TargetError(
            f"target 'host' does not support this machine's architecture ({cpuinfo.architecture()})", "name a target"
        )
    return make(cores)


def presets() -> dict[str, Callable[[int | None], Target]]:
    """`host` only."""
    return {"host": host}
