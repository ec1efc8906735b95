"""Reading a recipe from a YAML file, whatever the file holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from compiler.errors import OptionError, StorageError
from compiler.passes.registry import did_you_mean

_LONGEST = 1 << 16  # characters


def read_recipe(path: Path) -> Any:
    """Contents of the file, as Python's own types.

    Raises:
        StorageError: it cannot be read.
        OptionError: it is not YAML, refers to itself, names a key twice, or is too large.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _LONGEST:
            raise OptionError(f"{path} has {len(text)} characters", f"a recipe has at most {_LONGEST}")
        # References to other parts can stand for more than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise OptionError(f"{path} refers to parts of itself (*name)", "write the settings of each step out")
        for name, first, second in _repeated_keys(yaml.compose(text, yaml.SafeLoader)):
            raise OptionError(
                f"{path} has {name!r} in line {first} and again in line {second}",
                "keep one: a step that is done twice is two entries of the list",
            )
        return yaml.safe_load(text)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise OptionError(f"{path} is nested too deeply", "compress: [prune: {amount: 0.5}, quantize]") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or a number of thousands of digits
        raise OptionError(f"{path} cannot be read as YAML: {error}") from error


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """(key, line, line of its repetition) of mappings; YAML readers silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in lines:
                    yield key.value, lines[key.tag, key.value], line
                lines[key.tag, key.value] = line
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _repeated_keys(each)


# The settings of the steps of a recipe, checked before anything runs.

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
