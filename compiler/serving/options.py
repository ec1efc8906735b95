"""Options out of mappings, as files and command lines give them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from compiler.errors import OptionError

Options = TypeVar("Options")


def options_from(
    kind: type[Options],
    given: Mapping[str, object],
    where: str,
    folder: Path | None = None,
    *,
    others: Sequence[str] = (),
) -> Options:
    """An options dataclass out of a mapping.

    Args:
        where: what the mapping is, for messages: "exact_cache of model 'minilm'".
        folder: what relative paths are relative to.
        others: names that are read elsewhere, for messages.

    Raises:
        OptionError: a name is unknown, or a value does not fit.
    """
    options_mapping(given, where)
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            names = [*(each for each in known if not known[each].metadata.get("elsewhere")), *others]
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            raise OptionError(
                f"{where} has no option {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
                f"its options are {', '.join(names)}",
            )
    try:
        options: Options = TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise OptionError(f"{where}: {path}: {first['msg']}") from error
    return options if folder is None else _with_absolute_paths(options, folder)


def options_mapping(given: object, where: str) -> Mapping[str, object]:
    """Raises OptionError unless it is a mapping."""
    if not isinstance(given, Mapping):
        raise OptionError(f"{where} must be a mapping of options, not {given!r}")
    return given


def _with_absolute_paths(value: object, folder: Path) -> Any:
    """An options dataclass, what is in it included, with paths relative to a folder made absolute."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple | list):
        return type(value)(_with_absolute_paths(each, folder) for each in value)
    if isinstance(value, Mapping):
        return {name: _with_absolute_paths(each, folder) for name, each in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = (field.name for field in dataclasses.fields(value))
    return dataclasses.replace(value, **{name: _with_absolute_paths(getattr(value, name), folder) for name in fields})
