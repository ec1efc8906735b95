"""Decisions of a search: named knobs with a few options each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

Option = int | str | bool | float
Config = Mapping[str, Option]
Key = tuple[tuple[str, Option], ...]
_WIDTHS = ("channels", "expansion", "heads")


@dataclass(frozen=True)
class Knob:
    """One decision.

    Attributes:
        name: its kind and object, "channels features.3".
        kind: "channels", "heads", "expansion", "layer", "kernel", "resolution", "precision" or "choice".
        options: in ascending order; the last one is the original net's. For "precision" and "choice" they are
            alternatives in the given order.
    """

    name: str
    kind: str
    options: tuple[Option, ...]

    @property
    def is_ordered(self) -> bool:
        """True if a smaller option makes a smaller net."""
        return self.kind not in ("precision", "choice")


def largest(knobs: Sequence[Knob]) -> dict[str, Option]:
    """The original net."""
    return {knob.name: knob.options[-1] for knob in knobs}


def smallest(knobs: Sequence[Knob]) -> dict[str, Option]:
    """The smallest net; the first option for alternatives."""
    return {knob.name: knob.options[0] for knob in knobs}


def sampled(knobs: Sequence[Knob], random: Random) -> dict[str, Option]:
    """Random options, all with equal probability."""
    return {knob.name: random.choice(knob.options) for knob in knobs}


def uniform(knobs: Sequence[Knob], share: float) -> dict[str, Option]:
    """All groups of channels and heads at about the same fraction of their options, the rest unchanged."""
    return {
        knob.name: knob.options[round(share * (len(knob.options) - 1))] if knob.kind in _WIDTHS else knob.options[-1]
        for knob in knobs
    }


def neighbours(knobs: Sequence[Knob], config: Config) -> list[dict[str, Option]]:
    """All configs that differ in one knob: by one step for an ordered one, to any other option for others."""
    configs: list[dict[str, Option]] = []
    for knob in knobs:
        position = knob.options.index(config[knob.name])
        near = (position - 1, position + 1) if knob.is_ordered else range(len(knob.options))
        configs += [
            {**config, knob.name: knob.options[index]}
            for index in near
            if index != position and 0 <= index < len(knob.options)
        ]
    return configs


def exchanges(knobs: Sequence[Knob], config: Config) -> list[dict[str, Option]]:
    """The configs with one knob larger, or another alternative; then those with another knob smaller in exchange."""
    larger = [each for each in neighbours(knobs, config) if _rises(knobs, config, each)]
    configs = list(larger)
    for raised in larger:
        for knob in knobs:
            index = knob.options.index(config[knob.name])
            if knob.is_ordered and index and raised[knob.name] == config[knob.name]:
                configs.append({**raised, knob.name: knob.options[index - 1]})
    return configs


def _rises(knobs: Sequence[Knob], before: Config, after: Config) -> bool:
    return not any(
        knob.is_ordered and knob.options.index(after[knob.name]) < knob.options.index(before[knob.name])
        for knob in knobs
    )


def is_form(name: str) -> bool:
    """True if the knob with this name decides which layers there are: of residual layers and `choice` blocks."""
    return name.startswith(("layer ", "choice "))


def key_of(config: Config) -> Key:
    """A key that is equal for equal configs."""
    return tuple(sorted(config.items()))


def steps_away(knobs: Sequence[Knob], config: Config) -> dict[str, Option]:
    """The decisions that differ from the original net."""
    return {knob.name: config[knob.name] for knob in knobs if config[knob.name] != knob.options[-1]}
