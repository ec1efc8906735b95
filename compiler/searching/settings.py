"""The settings of `search`, checked before anything runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from compiler.compression.recipe import parse_recipe, read_recipe
from compiler.errors import OptionError, type_text
from compiler.passes.registry import did_you_mean
from compiler.support.options import check_choices
from compiler.support.precision import precision_name

SAMPLERS = ("nsga2", "tpe")
PRECISIONS = ("float32", "bf16", "int8", "int4")
# Possible limits of a budget, with their descriptions.
LIMITS = {
    "ms": "milliseconds of a run",
    "cycles": "cycles of the accelerator",
    "mb": "megabytes of parameters as the module stores them",
    "peak_mb": "megabytes of activations at the peak of a run",
    "sram_kb": "kibibytes of the accelerator's memory",
}
_TIMES_AS_LONG = 3  # factor for the training of finalists, if the caller does not set its length
_FILE_EXAMPLE = "space: {channels: [0.25, 0.5, 0.75], layers: true, precision: [int8, float32]}"
_SPACE_EXAMPLE = "space={'channels': [0.25, 0.5, 0.75], 'layers': True, 'precision': ['int8', 'float32']}"


class Space(BaseModel):
    """Search space; a YAML file with the key `space` has the same fields.

    Attributes:
        channels: fractions of the channels that a group may keep; 1 is always among the options.
        heads: the same for attention heads.
        expansion: the same for channels inside residual layers, which do not reach the sum; None: `channels`.
        layers: whether residual layers may be removed.
        kernels: sizes that square filters may be cropped to, around their center.
        resolution: fractions of the height and width that images may be scaled to before the net.
        precision: precision of each layer's weights (bf16, int4) or of its matmul or convolution (int8); float32 is
            always among the options.
        keep: names of layers, or prefixes of names, that are not changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    channels: tuple[float, ...] = (0.25, 0.5, 0.75)
    heads: tuple[float, ...] = (0.5,)
    expansion: tuple[float, ...] | None = None
    layers: bool = True
    kernels: tuple[int, ...] = ()
    resolution: tuple[float, ...] = ()
    precision: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @field_validator("channels", "heads", "expansion", "resolution")
    @classmethod
    def _are_shares(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not all(0 < each <= 1 for each in value):
            raise ValueError("give shares above 0 and up to 1")
        return value

    @field_validator("kernels")
    @classmethod
    def _are_odd(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(each > 0 and each % 2 for each in value):
            raise ValueError("sizes of filters must be odd, so that cropping keeps the centre")
        return value

    @field_validator("precision")
    @classmethod
    def _are_precisions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(map(precision_name, value))
        if unknown := [each for each in value if each not in PRECISIONS]:
            raise ValueError(f"{', '.join(unknown)}: use some of {', '.join(PRECISIONS)}")
        return (*(each for each in value if each != "float32"), "float32") if value else ()


def parse_space(space: Space | Mapping[str, Any] | str | Path | None) -> Space:
    """A space from any form that `search` accepts. Raises OptionError or StorageError."""
    if isinstance(space, Space):
        return space
    where, example = "space=", _SPACE_EXAMPLE
    if isinstance(space, str | Path):
        where, example = str(space), _FILE_EXAMPLE
        space = _space_of_file(Path(space))
    if space is not None and not isinstance(space, Mapping):
        raise OptionError(f"{where} is {type_text(space)}", example)
    try:
        return Space(**{str(name): value for name, value in (space or {}).items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(name, list(Space.model_fields))
            raise OptionError(f"{where} has the unknown key {name!r}", hint) from error
        problem = first["msg"].removeprefix("Value error, ")
        raise OptionError(f"{where} has {name}: {first['input']!r}: {problem}", example) from error


def _space_of_file(path: Path) -> Any:
    """Search space in a file: its entry `space`, or all of it. Raises OptionError or StorageError."""
    content = read_recipe(path)
    if not isinstance(content, Mapping):
        raise OptionError(f"{path} holds {'nothing' if content is None else type(content).__name__}", _FILE_EXAMPLE)
    if "space" not in content:
        return content
    if others := [str(name) for name in content if name != "space"]:
        raise OptionError(
            f"{path} has the key {others[0]!r} beside 'space'", "options of the search do not belong in it"
        )
    if content["space"] is None:
        raise OptionError(f"{path} has an empty space", _FILE_EXAMPLE)
    return content["space"]


def check_budget(budget: Mapping[str, float]) -> dict[str, float]:
    """Limits by name. Raises OptionError."""
    example = "budget={'ms': 5}, or several of " + ", ".join(LIMITS)
    if not isinstance(budget, Mapping) or not budget:
        raise OptionError(f"budget={budget!r}", example)
    for name, limit in budget.items():
        if name not in LIMITS:
            raise OptionError(f"budget= has {name!r}", did_you_mean(str(name), list(LIMITS)))
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
            raise OptionError(f"budget= has {name}={limit!r}", "give a number above 0")
    return {name: float(limit) for name, limit in budget.items()}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of `search` except the model; `search` documents the fields."""

    budget: Mapping[str, float]
    space: Space
    train: Callable[[Any], object] | None = None
    batches: Iterable[Any] | None = None
    task: Callable[[Any, Any], Any] | None = None
    epochs: int = 5
    finish_epochs: int | None = None
    learning_rate: float = 1e-3
    recipe: Any = None
    trials: int = 64
    sampler: str = "nsga2"
    seed: int = 0
    storage: str | os.PathLike[str] | None = None
    finalists: int = 2

    def check(self) -> None:
        """Raise OptionError for options that are invalid for every model."""
        check_budget(self.budget)
        check_choices(self, sampler=SAMPLERS)
        for name in ("trials", "finalists", "epochs", "finish_epochs"):
            value = getattr(self, name)
            if name == "finish_epochs" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r}", "give a whole number of 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise OptionError(f"learning_rate={self.learning_rate}", "give a number above 0")
        if self.train is not None and not callable(self.train):
            raise OptionError(f"train= is {type_text(self.train)}", "give a function that trains the net passed to it")
        if self.recipe is not None:
            parse_recipe(self.recipe)

    @property
    def epochs_of_finalists(self) -> int:
        """Epochs of distilling a finalist."""
        return _TIMES_AS_LONG * self.epochs if self.finish_epochs is None else self.finish_epochs

    @property
    def trains(self) -> bool:
        """True if weights are trained."""
        return self.train is not None or self.batches is not None
