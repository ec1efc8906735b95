"""Finds the rules for processors: in every module of `schedules` except `schedules.gpu`, and by entry point."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import entry_points
from types import GenericAlias
from typing import TypeGuard

from schedules.discovery import modules_of
from schedules.errors import RuleError
from schedules.rule import AnyRule, ScheduleRule

ENTRY_POINT_GROUP = "tensorwright.schedules"


def _own_rules() -> list[type[AnyRule]]:
    classes = []
    for module in modules_of("schedules", skip=("schedules.gpu",)):
        for value in vars(module).values():
            if _is_rule(value) and not inspect.isabstract(value) and value.__module__ == module.__name__:
                classes.append(value)
    return classes


def _is_rule(value: object) -> TypeGuard[type[AnyRule]]:
    # Python 3.10 takes an alias such as tuple[int, int] for a class, and `issubclass` does not.
    return inspect.isclass(value) and not isinstance(value, GenericAlias) and issubclass(value, ScheduleRule)


@cache
def rules() -> tuple[AnyRule, ...]:
    """One instance of each rule, by descending priority, then name. Raises RuleError for missing or repeated names."""
    classes = _own_rules()
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        loaded = entry.load()
        if not _is_rule(loaded):
            raise RuleError(f"entry point {entry.name!r} ({entry.value}) is not a ScheduleRule class")
        classes.append(loaded)
    by_name: dict[str, AnyRule] = {}
    for rule_class in classes:
        name = getattr(rule_class, "name", None)
        if not name:
            raise RuleError(f"{rule_class.__module__}.{rule_class.__qualname__} has no name")
        if name in by_name:
            raise RuleError(f"two rules are named {name!r}: {type(by_name[name])} and {rule_class}")
        by_name[name] = rule_class()
    return tuple(sorted(by_name.values(), key=lambda rule: (-rule.priority, rule.name)))
