"""Command-line options for the fields of `Processing`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from compiler.errors import OptionError, storage_errors
from compiler.support.processing import Processing

_PANEL = "Processing of images and results"
_NAMES = {"size": "image-size"}  # `--sizes` and `--shape` have another meaning


def processing_parameters() -> list[inspect.Parameter]:
    """Return a command parameter for each field, and `processing` to read them from the model's metadata."""
    flag = typer.Option("--processing", help="Read the processing from the model's metadata.", rich_help_panel=_PANEL)
    parameters = [_parameter("processing", False, Annotated[bool, flag])]
    for field in dataclasses.fields(Processing):
        option = typer.Option(f"--{_option_name(field.name)}", help=field.metadata["help"], rich_help_panel=_PANEL)
        parameters.append(_parameter(field.name, None, Annotated[str | None, option]))
    return parameters


def parse_processing(given: dict[str, Any]) -> Processing | Literal["auto"] | None:
    """Return the argument `processing` for values of `processing_parameters`. Raises OptionError, StorageError."""
    kinds = get_type_hints(Processing)
    values = {
        field.name: _parsed(field.name, given[field.name], kinds[field.name])
        for field in dataclasses.fields(Processing)
        if given.get(field.name) is not None
    }
    if values:
        return Processing(**values)
    return "auto" if given.get("processing") else None


def _parameter(name: str, default: object, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option_name(field: str) -> str:
    return _NAMES.get(field, field.replace("_", "-"))


def _parsed(name: str, text: str, kind: object) -> Any:
    """Parse the value of a field."""
    try:
        return _READERS.get(get_args(kind)[0], str)(text)
    except ValueError:
        raise OptionError(
            f"--{_option_name(name)} {text}: not understood", "`tensorwright compile --help` shows the form of each"
        ) from None


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


def _size(text: str) -> tuple[int, ...]:
    parts = text.lower().replace(",", "x").split("x")
    return tuple(int(each) for each in (parts * 2 if len(parts) == 1 else parts))


def _lines(text: str) -> tuple[str, ...]:
    with storage_errors(text, what="--names: "):
        return tuple(line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip())


_READERS: dict[object, Callable[[str], Any]] = {
    int: int,
    float: float,
    bool: _truth,
    tuple[int, int]: _size,
    tuple[float, ...]: _numbers,
    tuple[str, ...]: _lines,
}
