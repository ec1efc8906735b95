"""Schedule rules for described machines: one module per operator family.

Importing this package loads nothing of TVM; its modules do. How to add a rule: `schedules.rule`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schedules.config import Config, ConfigSpace
    from schedules.machine import Machine
    from schedules.rule import ScheduleRule, Workload
    from schedules.selection.apply import ScheduleReport, apply_schedules

_HOME = {
    "Config": "schedules.config",
    "ConfigSpace": "schedules.config",
    "Machine": "schedules.machine",
    "ScheduleReport": "schedules.selection.apply",
    "ScheduleRule": "schedules.rule",
    "Workload": "schedules.rule",
    "apply_schedules": "schedules.selection.apply",
}

__all__ = ["Config", "ConfigSpace", "Machine", "ScheduleReport", "ScheduleRule", "Workload", "apply_schedules"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'schedules' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
