"""Points of a config space: at random, and near other points."""

from __future__ import annotations

import random

from schedules.config import Config, ConfigSpace, KnobValue

_TRIES = 200
SMALL_SPACE = 512
"""Spaces up to this size are listed instead of sampled."""


def random_config(space: ConfigSpace, generator: random.Random) -> Config | None:
    """A config that meets the constraints; None when none was found in many tries."""
    names = sorted(space.knobs)
    for _ in range(_TRIES):
        config = Config.of({name: generator.choice(space.knobs[name]) for name in names})
        if all(constraint(config) for constraint in space.constraints):
            return config
    return None


def neighbour(space: ConfigSpace, config: Config, generator: random.Random) -> Config | None:
    """The config with one or two knobs changed, half the time to a value next to the old one; None when none fits."""
    names = [name for name, choices in sorted(space.knobs.items()) if len(choices) > 1]
    if not names:
        return None
    for _ in range(_TRIES // 10):
        changes = {
            name: _changed(space.knobs[name], config[name], generator)
            for name in generator.sample(names, min(len(names), generator.choice((1, 1, 2))))
        }
        moved = config.replace(**changes)
        if moved != config and all(constraint(moved) for constraint in space.constraints):
            return moved
    return None


def _changed(choices: tuple[KnobValue, ...], value: KnobValue, generator: random.Random) -> KnobValue:
    if generator.random() < 0.5 and value in choices:
        place = choices.index(value) + generator.choice((-2, -1, 1, 2))
        return choices[min(max(place, 0), len(choices) - 1)]
    return generator.choice(choices)


def crossed(space: ConfigSpace, one: Config, other: Config, generator: random.Random) -> Config | None:
    """Each knob from one of two configs; None when no such config meets the constraints."""
    for _ in range(_TRIES // 20):
        mixed = Config.of({name: (one if generator.random() < 0.5 else other)[name] for name in space.knobs})
        if all(constraint(mixed) for constraint in space.constraints):
            return mixed
    return None


def all_configs(space: ConfigSpace) -> list[Config] | None:
    """Every config of a small space, None for a large one."""
    return list(space) if space.size <= SMALL_SPACE else None
