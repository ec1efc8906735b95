"""Descriptions of hardware and how to build for it: one module or package per family.

Importing this package loads nothing of TVM; `Target.tvm_target()` does. Names are loaded on first use: a device that
only runs modules reads only `targets.cpuinfo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from targets.errors import LinkError, RegistrationError, TargetError, ToolchainMissing, UnknownTarget
    from targets.registry import get, names
    from targets.target import AcceleratedTarget, Target

_HOME = {
    "AcceleratedTarget": "targets.target",
    "LinkError": "targets.errors",
    "RegistrationError": "targets.errors",
    "Target": "targets.target",
    "TargetError": "targets.errors",
    "ToolchainMissing": "targets.errors",
    "UnknownTarget": "targets.errors",
    "get": "targets.registry",
    "names": "targets.registry",
}

__all__ = [
    "AcceleratedTarget",
    "LinkError",
    "RegistrationError",
    "Target",
    "TargetError",
    "ToolchainMissing",
    "UnknownTarget",
    "get",
    "names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'targets' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
