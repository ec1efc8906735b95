"""Selection of finalists among the candidates."""

from __future__ import annotations

from typing import Any, cast

import pytest

from compiler.errors import AccuracyError
from compiler.searching.explore import Explorer, Finalists, round_robin
from compiler.searching.finish import Finished, Finisher
from compiler.searching.front import Candidate
from compiler.searching.knobs import Config
from compiler.searching.settings import SearchOptions, Space


def candidate(width: int, layer: bool, score: float) -> Candidate:
    return Candidate({"channels a": width, "layer b": layer}, score, {"ms": 1.0}, -0.1)


DEEP = [candidate(width, True, width / 10) for width in (9, 8, 7, 6)]
SHALLOW = [candidate(width, False, width / 100) for width in (3, 2)]


def test_candidates_of_each_depth_take_turns() -> None:
    order = round_robin([*DEEP, *SHALLOW])
    assert order == [DEEP[0], SHALLOW[0], DEEP[1], SHALLOW[1], DEEP[2], DEEP[3]]
    assert round_robin([]) == []


class Stage:
    """An explorer and a finisher of candidates whose scores after training are known."""

    def __init__(self, candidates: list[Candidate], trained: dict[int, float], **options: Any) -> None:
        self.candidates, self.evenly_pruned, self.budget = candidates, DEEP[-1:], {"ms": 2.0}
        self.options = SearchOptions(budget=self.budget, space=Space(), **options)
        self.trained = trained
        self.seen: list[tuple[int, int | None]] = []

    def finish(self, config: Config, epochs: int | None = None) -> Finished:
        width = int(config["channels a"])
        self.seen.append((width, epochs))
        if width not in self.trained:
            raise AccuracyError("quantizing loses too much")
        unused = cast(Any, None)
        return Finished(config, unused, unused, self.trained[width], {"ms": 1.0}, (), 0.0)

    def finalists(self, fits: Any = lambda candidate: True) -> Finalists:
        return Finalists(cast(Explorer, self), cast(Finisher, self), fits, lambda step: None)


def test_the_best_of_a_race_are_finished() -> None:
    stage = Stage([*DEEP, *SHALLOW], {9: 0.5, 3: 0.9, 2: 0.7, 6: 0.6}, batches=[0], epochs=4, finalists=1)
    assert stage.finalists().best()[0] == SHALLOW[0]
    # Contenders take a quarter of the twelve epochs that finalists take.
    assert stage.seen == [(6, 3), (9, 3), (3, 3), (3, None)]


def test_without_batches_the_best_by_score_and_the_even_one_are_finished() -> None:
    stage = Stage([*DEEP, *SHALLOW], {8: 0.4, 6: 0.6}, finalists=1)
    assert stage.finalists(lambda candidate: candidate != DEEP[0]).best()[0] == DEEP[-1]
    assert stage.seen == [(6, None), (8, None)]
    with pytest.raises(AccuracyError, match="loses too much") as caught:
        Stage(DEEP, {}, finalists=1).finalists().best()
    assert caught.value.reached == DEEP
