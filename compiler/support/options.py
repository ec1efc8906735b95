"""Keyword options of public functions: grouped in dataclasses, and options for importing models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, TypeVar, get_type_hints

import numpy as np

from compiler.errors import OptionError

Options = TypeVar("Options")


def options_of(kind: type[Options], values: Mapping[str, object]) -> Options:
    """A dataclass from those `values` that are fields of it."""
    return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})  # type: ignore[arg-type]


def check_choices(options: object, **known: Collection[object]) -> None:
    """Raise OptionError if a field of `options` has a value that is not among the known ones."""
    for name, values in known.items():
        if (value := getattr(options, name)) not in values:
            raise OptionError(f"{name}={value!r}", f"use one of {', '.join(map(str, values))}")


Dimension = int | str
Shapes = Mapping[str, Sequence[Dimension]]
Constants = Mapping[str, np.ndarray]
State = Mapping[str, str] | Sequence[str] | None
Function = TypeVar("Function", bound=Callable[..., Any])


class ImportArguments(TypedDict, total=False):
    """Keyword arguments of a function that imports a model; `tensorwright.compile` describes them."""

    shapes: Shapes | None
    constants: Constants | None
    example_inputs: Sequence[Any] | Mapping[str, Any] | None
    dynamic_shapes: Any
    outputs: Sequence[str] | None
    state: State
    capacity: int | str | None


def split_imports(arguments: Mapping[str, Any]) -> tuple[ImportArguments, dict[str, Any]]:
    """The import arguments among the given ones, and the other arguments."""
    known = ImportArguments.__annotations__
    imports: Any = {name: value for name, value in arguments.items() if name in known}
    return imports, {name: value for name, value in arguments.items() if name not in known}


def takes_imports(function: Function) -> Function:
    """Make a function with `**imports: Unpack[ImportArguments]` list these arguments individually in its signature.

    Other keyword arguments (`**extra`) follow them.
    """
    hints = get_type_hints(ImportArguments)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in hints]
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            shown += added
        if parameter.name != "imports":
            shown.append(parameter)
    shown.sort(key=lambda each: each.kind)
    own = {name: hint for name, hint in function.__annotations__.items() if name != "imports"}
    function.__annotations__ = {**own, **hints}
    named = [each.replace(annotation=function.__annotations__.get(each.name, each.annotation)) for each in shown]
    function.__signature__ = inspect.signature(function).replace(parameters=named)  # type: ignore[attr-defined]
    return function
