"""Searches stay in the space, never repeat a config, and find a planted optimum faster than random search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.tuning.search import searches
from compiler.tuning.state import TaskState
from schedules.config import Config, ConfigSpace
from schedules.machine import Machine

SPACE = ConfigSpace(
    {"a": tuple(range(1, 41)), "b": tuple(range(1, 41)), "c": (1, 2, 4, 8)},
    (lambda config: config.integer("a") * config.integer("b") <= 200,),
)
DEFAULT = Config.of(a=1, b=1, c=1)


def state_of(space: ConfigSpace) -> TaskState:
    task: Any = SimpleNamespace(space=space, default=DEFAULT, count=1, tunable=True)
    return TaskState(task, Machine())


def seconds(config: Config) -> float:
    """Fastest at a=12, b=16, c=4."""
    far = abs(config.integer("a") - 12) + abs(config.integer("b") - 16) + 3 * abs(math.log2(config.integer("c")) - 2)
    return 1.0 + far


def blind(configs: Sequence[Config]) -> NDArray[np.float64]:
    return np.zeros(len(configs))


def knowing(configs: Sequence[Config]) -> NDArray[np.float64]:
    return np.array([-seconds(config) for config in configs])


@pytest.mark.parametrize("name", searches.names())
def test_proposals_are_new_and_inside(name: str) -> None:
    state, search = state_of(SPACE), searches.make(name, seed=3)
    state.note(DEFAULT, 1.0)
    for _ in range(4):
        proposed = search.propose(state, blind, 16)
        assert len(set(proposed)) == len(proposed) == 16
        for config in proposed:
            assert config in SPACE
            assert config not in state.results
            state.note(config, seconds(config))


@pytest.mark.parametrize("name", searches.names())
def test_a_small_space_is_used_up(name: str) -> None:
    space = ConfigSpace({"a": (1, 2, 3), "b": (1, 2)})
    state, search = state_of(space), searches.make(name, seed=0)
    found: set[Config] = set()
    while proposed := search.propose(state, blind, 4):
        for config in proposed:
            state.note(config, 1.0)
        found |= set(proposed)
    assert found == set(space)


def test_evolution_follows_the_score() -> None:
    state, search = state_of(SPACE), searches.make("evolutionary", seed=1)
    for _ in range(2):
        for config in search.propose(state, knowing, 16):
            state.note(config, seconds(config))
    assert state.best_seconds <= 2.0


def test_evolution_beats_chance_without_a_model() -> None:
    def reached(name: str, seed: int) -> float:
        state, search = state_of(SPACE), searches.make(name, seed=seed)
        for _ in range(8):
            for config in search.propose(state, blind, 16):
                state.note(config, seconds(config))
        return state.best_seconds

    evolved = [reached("evolutionary", seed) for seed in range(5)]
    random = [reached("random", seed) for seed in range(5)]
    assert np.mean(evolved) < np.mean(random)
