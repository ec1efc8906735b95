"""Commands whose options are the fields of a dataclass, as typer reads them from the parameters of a function."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def command_of(
    options: type[Options], run: Callable[..., int | None], more: Sequence[inspect.Parameter] = ()
) -> Callable[..., int | None]:
    """A function for `app.command(...)` with a parameter for each field of `options`, annotated and with the default
    of the field. It calls `run` with what was given; with the values of `more` parameters, as a dictionary, behind
    it where there are any."""

    def command(**given: object) -> int | None:
        others = {each.name: given.pop(each.name) for each in more}
        return run(options(**given), *([others] if more else []))

    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(options)
    ]
    parameters += more
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": int | None}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = run.__doc__
    return command
