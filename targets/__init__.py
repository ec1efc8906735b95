"""What the hardware is and how to build for it: one module a target.

Importing this package loads nothing of the engine; `Target.tvm_target()` does.
"""

from __future__ import annotations

from targets.accelerated import AcceleratedTarget
from targets.errors import LinkError, RegistrationError, TargetError, ToolchainMissing, UnknownTarget
from targets.registry import get, names
from targets.target import Target

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
