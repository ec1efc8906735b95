"""Candidates that are trained to the end: the best ones of a race of short trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from compiler.errors import AccuracyError, TensorwrightError
from compiler.searching.cost import excess
from compiler.searching.explore import Explorer, unreachable
from compiler.searching.finish import Finished, Finisher
from compiler.searching.front import Candidate, feasible
from compiler.searching.knobs import Config, Key, Option, is_form, key_of

_CONTENDERS = 3  # to each finalist
_SHARE_OF_TRAINING = 4  # a contender's training is so many times shorter than a finalist's

Chosen = tuple[Candidate, Finished]


class Finalists:
    """Picks and finishes candidates of a search that has ended.

    Scores with shared weights say little of those after training, least of all between nets of different depth. So
    the best candidates of each selection of layers and forms, and the best evenly pruned one, are trained for a short
    time first; those that are best then are trained to the end. Without `batches` there are no short trainings: the
    best by their score, and the best evenly pruned one, are finished.

    Args:
        fits: whether a candidate meets the budget when its module is run as a whole.
    """

    def __init__(
        self, explorer: Explorer, finisher: Finisher, fits: Callable[[Candidate], bool], report: Callable[[str], None]
    ) -> None:
        self._explorer, self._finisher, self._fits, self._report = explorer, finisher, fits, report
        self._options, self._budget = explorer.options, explorer.budget
        self._failed: TensorwrightError | None = None
        self._known: dict[Key, bool] = {}

    def best(self) -> Chosen:
        """The best finished net within the budget.

        Raises:
            OptionError: none is within the budget.
            AccuracyError: quantizing loses more than it may, in all of them.
            UserError: of training and compiling.
        """
        ranked = feasible(self._explorer.candidates)
        even = self._explorer.evenly_pruned[:1]
        count = self._options.finalists
        order: Iterable[Candidate]
        if self._options.batches is None:
            order, count = [*even, *(each for each in ranked if each not in even)], count + len(even)
        else:
            order = self._raced([*even, *(each for each in in_turns(ranked) if each not in even)])
        found = self._finished(order, count, None, "finish finalist")
        if not found:
            nearest = min(ranked or self._explorer.candidates, key=lambda each: each.excess)
            problem = self._failed or unreachable(nearest.costs, self._budget)
            problem.reached = self._explorer.candidates
            raise problem
        return max(found, key=lambda each: each[1].score)

    def _raced(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Contenders, the best after a short training first."""
        epochs = max(1, self._options.epochs_of_finalists // _SHARE_OF_TRAINING)
        found = self._finished(candidates, _CONTENDERS * self._options.finalists, epochs, "train contender")
        return [candidate for candidate, _ in sorted(found, key=lambda each: -each[1].score)]

    def _finished(self, candidates: Iterable[Candidate], count: int, epochs: int | None, what: str) -> list[Chosen]:
        """The first `count` of the candidates that can be finished within the budget."""
        found: list[Chosen] = []
        for candidate in candidates:
            if len(found) == count:
                break
            if not self._is_within(candidate):
                continue
            self._report(f"{what} {len(found) + 1}")
            try:
                finished = self._finisher.finish(candidate.config, epochs)
            except AccuracyError as error:
                self._failed = error
                continue
            except TensorwrightError as error:
                error.reached = self._explorer.candidates
                raise
            if excess(finished.costs, self._budget) <= 0:
                found.append((candidate, finished))
        return found

    def _is_within(self, candidate: Candidate) -> bool:
        """True if it fits, asked once: times vary."""
        key = key_of(candidate.config)
        if key not in self._known:
            self._known[key] = self._fits(candidate)
        return self._known[key]


def in_turns(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best of each selection of layers and forms, then the second best of each, and so on."""
    groups: dict[tuple[tuple[str, Option], ...], list[Candidate]] = {}
    for each in ranked:
        groups.setdefault(_forms(each.config), []).append(each)
    most = max(map(len, groups.values()), default=0)
    return [group[place] for place in range(most) for group in groups.values() if place < len(group)]


def _forms(config: Config) -> tuple[tuple[str, Option], ...]:
    return tuple((name, option) for name, option in sorted(config.items()) if is_form(name))
