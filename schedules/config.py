"""The knobs of a rule: their space, with constraints, and its points."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from schedules.errors import ConfigError

KnobValue = int | str | bool
Constraint = Callable[["Config"], bool]


@dataclass(frozen=True)
class Config(Mapping[str, KnobValue]):
    """A value for each knob; hashable, and JSON through `to_json`."""

    values_: tuple[tuple[str, KnobValue], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, KnobValue] | None = None, /, **knobs: KnobValue) -> Config:
        """Make a config from a mapping, keywords, or both."""
        merged = {**(values or {}), **knobs}
        return cls(tuple(sorted(merged.items())))

    def __getitem__(self, name: str) -> KnobValue:
        for key, value in self.values_:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def integer(self, name: str) -> int:
        """The value of an integer knob."""
        return int(self[name])

    def replace(self, **knobs: KnobValue) -> Config:
        """The same config with some knobs changed."""
        return Config.of(self, **knobs)

    def to_json(self) -> str:
        """A canonical JSON text."""
        return json.dumps(dict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of `to_json`; raises ConfigError when the text is not a JSON object."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"not a config: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"a config is a JSON object, not {type(values).__name__}")
        return cls.of(values)


@dataclass(frozen=True)
class ConfigSpace:
    """Named knobs, each with its allowed values, and constraints that a whole config must meet."""

    knobs: Mapping[str, tuple[KnobValue, ...]] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()

    def __contains__(self, config: object) -> bool:
        if not isinstance(config, Config) or set(config) != set(self.knobs):
            return False
        return all(config[name] in choices for name, choices in self.knobs.items()) and all(
            constraint(config) for constraint in self.constraints
        )

    def __iter__(self) -> Iterator[Config]:
        """All configs that meet the constraints, in a fixed order."""
        names = sorted(self.knobs)
        for values in itertools.product(*(self.knobs[name] for name in names)):
            config = Config.of(dict(zip(names, values, strict=True)))
            if all(constraint(config) for constraint in self.constraints):
                yield config

    @property
    def size(self) -> int:
        """The number of configs before the constraints."""
        return math.prod(map(len, self.knobs.values()))

    def check(self, config: Config) -> None:
        """Raise ConfigError with the name of the first knob whose value is not in the space."""
        unknown = set(config) - set(self.knobs)
        if unknown:
            noun = "knob" if len(unknown) == 1 else "knobs"
            raise ConfigError(
                f"unknown {noun} {', '.join(sorted(unknown))}; this space has {', '.join(sorted(self.knobs))}"
            )
        for name, choices in self.knobs.items():
            value: Any = config.get(name)
            if value not in choices:
                raise ConfigError(f"knob {name!r} is {value!r}, which is not one of {list(choices)}")
        if config not in self:
            raise ConfigError(f"{config.to_json()} violates a constraint of the space")
