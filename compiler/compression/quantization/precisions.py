"""A file of the layers that compute in integers and in float, so that another run can repeat the decision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from compiler.errors import OptionError, StorageError

FORMAT_VERSION = 1
PREDICTED, MEASURED = "predicted", "measured"
INTEGER, FLOAT = "integer", "float"


def check_decide(decide: str | Path | Mapping[str, str]) -> str | Mapping[str, str]:
    """`PREDICTED`, `MEASURED`, or "integer" or "float" by the layer's name, which may lie in a file.

    Raises OptionError for anything else.
    """
    if isinstance(decide, str) and decide in (PREDICTED, MEASURED):
        return decide
    if isinstance(decide, str | Path):
        return _read(Path(decide))
    if not isinstance(decide, Mapping):
        raise OptionError(f"decide={decide!r}", f"use {PREDICTED!r}, {MEASURED!r}, a .json file, or a dictionary")
    return _checked(decide, "decide=")


def write_precisions(precisions: Mapping[str, str], path: str | Path) -> None:
    """Write them for `check_decide` to read. Raises StorageError."""
    text = json.dumps({"version": FORMAT_VERSION, "layers": dict(precisions)}, indent=1)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def _read(path: Path) -> dict[str, str]:
    if path.suffix != ".json":
        raise OptionError(f"decide={str(path)!r}", f"use {PREDICTED!r}, {MEASURED!r}, or a .json file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise OptionError(f"{path} holds no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
        raise OptionError(f"{path} does not hold precisions of layers", "write it with save_precisions")
    return _checked(content.get("layers"), str(path))


def _checked(layers: object, where: str) -> dict[str, str]:
    if not isinstance(layers, Mapping):
        raise OptionError(f"{where} has no layers", 'give {"layer": "integer" or "float"}')
    for name, precision in layers.items():
        if precision not in (INTEGER, FLOAT):
            raise OptionError(f"{where} has {precision!r} for the layer {name!r}", "use 'integer' or 'float'")
    return {str(name): str(precision) for name, precision in layers.items()}
