"""The settings of the steps of a recipe, checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from compiler.errors import OptionError
from compiler.passes.registry import did_you_mean

# What `compress` passes on itself, or what is not data.
_GIVEN = ("source", "student", "calibration", "evaluate", "target", "threads", "progress")


def checked_settings(step: str, function: Callable[..., Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """Settings from a file as the types that the technique declares.

    Raises OptionError for settings of other types, and for unknown ones.
    """
    check_names(step, function, settings)
    hints = get_type_hints(function)
    return {name: _converted(step, name, hints.get(name, Any), value) for name, value in settings.items()}


def arguments(function: Callable[..., Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """All arguments of a technique: `settings`, its defaults, and None for what has neither."""
    found: dict[str, Any] = {}
    for name, each in inspect.signature(function).parameters.items():
        found[name] = None if each.default is inspect.Parameter.empty else each.default
    return {**found, **settings}


def check_names(step: str, function: Callable[..., Any], settings: Mapping[str, object]) -> None:
    """Raises OptionError for a setting that the technique does not take, or that is the whole recipe's."""
    known = [name for name in inspect.signature(function).parameters if name not in _GIVEN]
    for name in settings:
        if name in _GIVEN:
            raise OptionError(f"the step {step!r} has {name}=, which is the same for all steps", "give it to compress")
        if name not in known:
            raise OptionError(f"the step {step!r} takes no setting {name!r}", did_you_mean(str(name), known))


def _converted(step: str, name: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        problems = "; ".join(each["msg"] for each in error.errors())
        raise OptionError(f"the step {step!r}: {name}={value!r} does not fit: {problems}") from error
