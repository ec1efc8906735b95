"""Evolutionary search guided by the cost model, with a random share, like Ansor (Zheng et al. 2020), over knobs."""

from __future__ import annotations

import random
from collections.abc import Iterable

from compiler.tuning.search import Score, searches
from compiler.tuning.state import TaskState
from schedules.config import Config, ConfigSpace, KnobValue

_POPULATION = 192
_GENERATIONS = 3
_PARENTS = 24
_CHANCE = 0.12  # probability of a random proposal: the model may be wrong in unexplored regions


@searches.register("evolutionary")
class Evolutionary:
    """Parents are the fastest configs measured and the best predicted; children differ in a knob or mix two parents."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def propose(self, state: TaskState, score: Score, count: int) -> list[Config]:
        space = state.task.space
        listed = all_configs(space)
        if listed is not None:
            fresh = [config for config in listed if config not in state.results]
            return self._chosen(fresh, score, count)
        measured = sorted(
            (config for config, seconds in state.results.items() if seconds is not None),
            key=lambda config: state.results[config] or 0.0,
        )[:_PARENTS]
        population = set(self._random_ones(state, _POPULATION // 2))
        population |= set(self._children(state, measured, _POPULATION // 2))
        for _ in range(_GENERATIONS):
            ranked = self._ranked(population, score)
            parents = [*measured[: _PARENTS // 2], *ranked[:_PARENTS]]
            population = set(ranked[: _POPULATION // 2]) | set(self._children(state, parents, _POPULATION // 2))
        return self._chosen([each for each in population if each not in state.results], score, count)

    def _chosen(self, fresh: list[Config], score: Score, count: int) -> list[Config]:
        ranked = self._ranked(fresh, score)
        chosen = ranked[:count]
        rest = ranked[count:]
        for index in range(1, len(chosen)):
            if rest and self._random.random() < _CHANCE:
                chosen[index] = rest.pop(self._random.randrange(len(rest)))
        return chosen

    def _ranked(self, configs: Iterable[Config], score: Score) -> list[Config]:
        """Best score first; ties in random order, the same for the same seed."""
        listed = sorted(configs, key=lambda config: config.values_)
        if not listed:
            return []
        self._random.shuffle(listed)
        scores = score(listed)
        return [listed[i] for i in sorted(range(len(listed)), key=lambda i: -scores[i])]

    def _random_ones(self, state: TaskState, count: int) -> Iterable[Config]:
        for _ in range(count):
            config = random_config(state.task.space, self._random)
            if config is not None:
                yield config

    def _children(self, state: TaskState, parents: list[Config], count: int) -> Iterable[Config]:
        if not parents:
            return
        for _ in range(count):
            parent = parents[min(int(self._random.expovariate(4.0 / len(parents))), len(parents) - 1)]
            if self._random.random() < 0.25:
                child = crossed(state.task.space, parent, self._random.choice(parents), self._random)
            else:
                child = neighbour(state.task.space, parent, self._random)
            if child is not None:
                yield child


@searches.register("random")
class RandomSearch:
    """Random search: the baseline."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def propose(self, state: TaskState, score: Score, count: int) -> list[Config]:
        listed = all_configs(state.task.space)
        if listed is not None:
            fresh = [config for config in listed if config not in state.results]
            return self._random.sample(fresh, min(count, len(fresh)))
        proposals: dict[Config, None] = {}
        for _ in range(count * 4):
            config = random_config(state.task.space, self._random)
            if config is not None and config not in state.results:
                proposals[config] = None
            if len(proposals) == count:
                break
        return list(proposals)


# Points of a config space: random ones, and neighbors of other points.

_TRIES = 200
SMALL_SPACE = 512
"""Spaces up to this size are enumerated instead of sampled."""


def random_config(space: ConfigSpace, generator: random.Random) -> Config | None:
    """A config that meets the constraints; None if many tries found none."""
    names = sorted(space.knobs)
    for _ in range(_TRIES):
        config = Config.of({name: generator.choice(space.knobs[name]) for name in names})
        if all(constraint(config) for constraint in space.constraints):
            return config
    return None


def neighbour(space: ConfigSpace, config: Config, generator: random.Random) -> Config | None:
    """The config with one or two knobs changed, half of the time to an adjacent value; None if none fits."""
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
        index = choices.index(value) + generator.choice((-2, -1, 1, 2))
        return choices[min(max(index, 0), len(choices) - 1)]
    return generator.choice(choices)


def crossed(space: ConfigSpace, one: Config, other: Config, generator: random.Random) -> Config | None:
    """Each knob from one of two configs; None if no such config meets the constraints."""
    for _ in range(_TRIES // 20):
        mixed = Config.of({name: (one if generator.random() < 0.5 else other)[name] for name in space.knobs})
        if all(constraint(mixed) for constraint in space.constraints):
            return mixed
    return None


def all_configs(space: ConfigSpace) -> list[Config] | None:
    """Every config of a small space, None for a large one."""
    return list(space) if space.size <= SMALL_SPACE else None
