"""The search over a synthetic net: its results, and its behavior after failures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import OptionError, StorageError
from compiler.searching.explore import Explorer, check_choices
from compiler.searching.front import feasible, pareto
from compiler.searching.knobs import Config, Knob, key_of, largest
from compiler.searching.layer_table import CostModel
from compiler.searching.settings import SearchOptions, Space
from compiler.searching.study import Study
from compiler.support.accuracy import score

pytest.importorskip("optuna")
KNOBS = [
    Knob("channels a", "channels", (1, 2, 3, 4)),
    Knob("channels b", "channels", (1, 2, 3, 4)),
    Knob("precision a", "precision", ("int8", "float32")),
]


class MadeUp:
    """Channels of `a` matter more than those of `b`; integers cost a hundredth."""

    knobs = KNOBS

    def __init__(self) -> None:
        self.scored: list[Config] = []

    def model(self, config: Config) -> Any:
        return config

    def score(self, config: Config) -> float:
        def evaluate(run: object) -> float:
            value = 4 * int(config["channels a"]) + int(config["channels b"])
            return value - (0.01 if config["precision a"] == "int8" else 0.0)

        self.scored.append(config)
        return score(evaluate, dict)


class MadeUpCosts(CostModel):
    """Time is the number of channels; channels in integers count half."""

    def __init__(self) -> None:
        self.wanted, self.table = ("ms",), None

    def costs(self, models: Sequence[Any]) -> list[dict[str, float]]:
        return [{"ms": self._of(config)} for config in models]

    def _of(self, config: Config) -> float:
        return int(config["channels a"]) * (0.5 if config["precision a"] == "int8" else 1) + int(config["channels b"])


def explorer(
    net: Any, limit: float, *, storage: Path | None = None, sampler: str = "nsga2", trials: int = 24
) -> Explorer:
    options = SearchOptions(budget={"ms": limit}, space=Space(), trials=trials, sampler=sampler)
    study = Study(KNOBS, "ms", f"{limit}", sampler=sampler, seed=0, storage=storage)
    return Explorer(net, MadeUpCosts(), {"ms": limit}, options, study, lambda step: None)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_finds_the_best_within_the_budget(sampler: str) -> None:
    found = explorer(MadeUp(), 3.0, sampler=sampler).run()
    best = feasible(found)[0]
    assert best.config == {"channels a": 4, "channels b": 1, "precision a": "int8"}
    assert len({key_of(each.config) for each in found}) == len(found) <= 24
    front = pareto(found, "ms")
    assert all(a.costs["ms"] < b.costs["ms"] and a.score < b.score for a, b in itertools.pairwise(front))


def test_a_budget_that_nothing_meets_says_how_close_it_came() -> None:
    net = MadeUp()
    with pytest.raises(OptionError, match=r"1\.5 ms of 1"):
        explorer(net, 1.0).run()
    assert net.scored == []


def test_a_failed_evaluation_loses_nothing_and_the_search_goes_on(tmp_path: Path) -> None:
    class Failing(MadeUp):
        def score(self, config: Config) -> float:
            if len(self.scored) == 7:
                return score(lambda run: math.nan, dict)
            return super().score(config)

    first = explorer(Failing(), 3.0, storage=tmp_path / "trials.db")
    with pytest.raises(OptionError, match="evaluate= returned nan") as caught:
        first.run()
    assert len(caught.value.reached) == 7  # type: ignore[arg-type]
    assert first.study.add_spent(2.0, 1.0) == (2.0, 1.0)
    net = MadeUp()
    resumed = explorer(net, 3.0, storage=tmp_path / "trials.db")
    assert resumed.study.add_spent(3.0, 0.5) == (5.0, 1.5)
    assert len(resumed.candidates) == 7
    assert len(resumed.run()) == 24
    assert len(net.scored) == 24 - 7
    assert not {key_of(each.config) for each in first.candidates} & {key_of(each) for each in net.scored}


def test_the_same_seed_finds_the_same() -> None:
    runs = [explorer(MadeUp(), 3.5, trials=16).run() for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_storage_serves_one_search(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    Study(KNOBS, "ms", "one", sampler="tpe", seed=0, storage=path)
    with pytest.raises(OptionError, match="holds a search of another net"):
        Study(KNOBS, "ms", "other", sampler="tpe", seed=0, storage=path)
    path.write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.raises(StorageError, match="cannot be used"):
        Study(KNOBS, "ms", "one", sampler="tpe", seed=0, storage=path)
    with pytest.raises(StorageError, match="no folder"):
        Study(KNOBS, "ms", "one", sampler="tpe", seed=0, storage=tmp_path / "none" / "trials.db")


def test_a_space_without_a_choice_is_refused() -> None:
    with pytest.raises(OptionError, match="the space has no choice"):
        check_choices([])
    assert largest(KNOBS)["precision a"] == "float32"
