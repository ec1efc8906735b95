"""The search itself: seeds, a path of small steps, an optuna sampler, and finally small steps around the best.

Also selects the candidates that are fully trained: the best ones of a race of short trainings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from compiler.errors import AccuracyError, OptionError, TensorwrightError
from compiler.frontends.imported_model import ImportedModel
from compiler.searching.finish import Finished, Finisher
from compiler.searching.front import Candidate, feasible, pareto
from compiler.searching.knobs import (
    Config,
    Key,
    Knob,
    Option,
    exchanges,
    is_form,
    key_of,
    largest,
    neighbours,
    smallest,
    uniform,
)
from compiler.searching.layer_table import CostModel, Costs, excess
from compiler.searching.settings import SearchOptions
from compiler.searching.study import Study

_BATCH = 8  # candidates that a sampler proposes before the next ones learn from them
_COSTED = 16  # candidates whose kernels are measured together
_UNIFORM = (0.25, 0.5, 0.75)
_STEPS = 5  # steps of the path to the budget
_SHARE_OF_PATH = 0.4  # fraction of the trials
_SHARE_OF_LAST_STEPS = 0.3
_SHARE_OF_DEPTHS = 0.5
_MAX_LAYERS = 8  # layers that are initially left out one at a time
_MAX_STEPS = 48  # steps from one candidate


class Net(Protocol):
    """The net that is searched."""

    @property
    def knobs(self) -> list[Knob]:
        """Decisions of the search."""

    def model(self, config: Config) -> ImportedModel:
        """A candidate as a graph, for its costs."""

    def score(self, config: Config) -> float:
        """Score by `evaluate`."""


@dataclass
class Explorer:
    """Evaluates configs, each once, and stores them in the study. `main`: the name of the budget's limit that is one
    axis of the front."""

    net: Net
    costs: CostModel
    budget: Mapping[str, float]
    options: SearchOptions
    study: Study
    report: Callable[[str], None]

    def __post_init__(self) -> None:
        self.main = next(iter(self.budget))
        self._known: dict[Key, Candidate] = {key_of(each.config): each for each in self.study.finished()}
        self._costs: dict[Key, Costs] = {key: each.costs for key, each in self._known.items()}
        self._even: list[Candidate] = []

    @property
    def evenly_pruned(self) -> list[Candidate]:
        """The largest evenly pruned nets within the budget, the best one first."""
        return feasible(self._even)

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates so far."""
        return list(self._known.values())

    def run(self) -> list[Candidate]:
        """Run the search and return all candidates. Raises OptionError if `evaluate` fails, or even the smallest net
        does not meet the budget."""
        self.report("measure the original net and the smallest one")
        self._check_reachable()
        knobs = self.net.knobs
        self.evaluate([largest(knobs), *(uniform(knobs, share) for share in _UNIFORM), smallest(knobs)])
        self._evenly_pruned()
        self._path()
        self._sample(self.options.trials - self._last_steps)
        self._refine()
        return self.candidates

    @property
    def _last_steps(self) -> int:
        return round(_SHARE_OF_LAST_STEPS * self.options.trials)

    def costs_of(self, configs: Sequence[Config]) -> list[Costs]:
        """Only the costs, each config once."""
        new = {key_of(config): config for config in configs if key_of(config) not in self._costs}
        keys = list(new)
        for start in range(0, len(keys), _COSTED):  # large nets: only a few fit in memory at a time
            part = keys[start : start + _COSTED]
            found = self.costs.costs([self.net.model(new[key]) for key in part])
            self._costs |= dict(zip(part, found, strict=True))
        return [self._costs[key_of(config)] for config in configs]

    def evaluate(self, configs: Sequence[Config]) -> list[Candidate]:
        """Costs and scores; known ones are not computed again, and new ones are stored in the study one by one."""
        costs = self.costs_of(configs)
        candidates = []
        for config, config_costs in zip(configs, costs, strict=True):
            key = key_of(config)
            if key not in self._known:
                self._known[key] = self.study.record(config, partial(self._scored, config, config_costs))
                self._show()
            candidates.append(self._known[key])
        return candidates

    def looked_up(self, configs: Sequence[Config]) -> list[Candidate]:
        """Like `evaluate`, for configs that are not trials of the search."""
        costs = self.costs_of(configs)
        return [
            self._known.get(key_of(config)) or self._scored(config, each)
            for config, each in zip(configs, costs, strict=True)
        ]

    def _scored(self, config: Config, costs: Costs) -> Candidate:
        try:
            value = self.net.score(config)
        except TensorwrightError as error:
            decisions = json.dumps(dict(config))
            error.message = f"a candidate of the search cannot be scored: {error.message}\n  it is {decisions}"
            error.reached = self.candidates
            raise
        return Candidate(dict(config), value, costs, excess(costs, self.budget))

    def _check_reachable(self) -> None:
        """Raise OptionError if even the smallest nets exceed the budget."""
        smallests = _smallest_nets(self.net.knobs)
        costs = self.costs_of(smallests)
        if min(excess(each, self.budget) for each in costs) > 0:
            nearest = min(costs, key=lambda each: excess(each, self.budget))
            raise unreachable(nearest, self.budget)

    def _evenly_pruned(self) -> None:
        """For each precision and form, the largest evenly pruned net within the budget; and the largest ones without
        one of the residual layers, and without all: a wide shallow net often beats a narrow deep one."""
        knobs = self.net.knobs
        levels = max((len(knob.options) for knob in knobs), default=1)
        for alternative in _smallest_nets(knobs):
            others = {knob.name: alternative[knob.name] for knob in knobs if not knob.is_ordered}
            for without in _depths(knobs):
                if without and len(self._known) >= _SHARE_OF_DEPTHS * self.options.trials:
                    break
                for level in range(levels - 1, -1, -1):
                    config = {**uniform(knobs, level / max(levels - 1, 1)), **others, **without}
                    if excess(self.costs_of([config])[0], self.budget) <= 0:
                        found = self.evaluate([config])
                        self._even += [] if without else found
                        break

    def _path(self) -> None:
        """From the full net to the budget in steps, each with the knob that loses the least score (NetAdapt, Yang et
        al.
        2018): the knob's largest option that saves the step's share, or its smallest."""
        knobs = [knob for knob in self.net.knobs if len(knob.options) > 1]
        config = largest(knobs)
        at = self.evaluate([config])[0]
        limit = self.budget[self.main]
        step = max(at.costs[self.main] - limit, 0.0) / _STEPS
        allowed = round(_SHARE_OF_PATH * self.options.trials)
        while at.excess > 0 and step > 0 and len(self._known) < allowed:
            proposals = [each for knob in knobs if (each := self._smaller(knob, at.config, step)) is not None]
            if not proposals:
                return
            found = self.evaluate(proposals[: max(1, self.options.trials - len(self._known))])
            better = [each for each in found if each.costs[self.main] < at.costs[self.main]]
            if not better:
                return
            at = min(better, key=lambda each: self._price(at, each, step))

    def _price(self, before: Candidate, after: Candidate, step: float) -> tuple[float, float]:
        """The score lost by a step, relative to its savings if these are less than a full step."""
        saved = min((before.costs[self.main] - after.costs[self.main]) / step, 1.0)
        return (before.score - after.score) / saved, after.costs[self.main]

    def _smaller(self, knob: Knob, config: Config, step: float) -> dict[str, Option] | None:
        """The knob's largest option below the current one that saves `step`; else its smallest; None without one."""
        index = knob.options.index(config[knob.name])
        options = (
            knob.options[:index] if knob.is_ordered else [each for each in knob.options if each != config[knob.name]]
        )
        if not options:
            return None
        at = self.costs_of([config])[0][self.main]
        ordered = list(reversed(options))
        low, high = 0, len(ordered) - 1  # smaller options save more: find the first that saves enough
        while low < high:
            middle = (low + high) // 2
            saved = at - self.costs_of([{**config, knob.name: ordered[middle]}])[0][self.main]
            low, high = (low, middle) if saved >= step else (middle + 1, high)
        return {**config, knob.name: ordered[low]}

    def _sample(self, until: int) -> None:
        while len(self._known) < until:
            proposals = self.study.proposals(min(_BATCH, until - len(self._known)))
            try:
                known_count = len(self._known)
                self.costs_of([config for _, config in proposals])  # measures the kernels of all together
                for trial, config in proposals:
                    self._finish(trial, config)
            finally:
                for trial, _ in proposals:
                    self.study.fail(trial)
            if len(self._known) == known_count and not self.evaluate(self._unknown_neighbours()[:1]):
                return  # the space is exhausted

    def _finish(self, trial: Any, config: dict[str, Option]) -> None:
        """Store a sampler's trial; known results are not computed again."""
        key = key_of(config)
        known = self._known.get(key)
        costs = self.costs_of([config])[0]
        evaluate = partial(self._scored, config, costs) if known is None else partial(_same, known)
        self._known[key] = self.study.finish(trial, evaluate)
        if known is None:
            self._show()

    def _refine(self) -> None:
        """Small steps from the best candidates within the budget, until none is better or the trials are used up: one
        knob
        larger, or one larger and another smaller."""
        tried: set[Key] = set()
        while len(self._known) < self.options.trials:
            starts = [each for each in feasible(self.candidates) if key_of(each.config) not in tried]
            if not starts:
                self._complete()
                return
            tried.add(key_of(starts[0].config))
            steps = [each for each in exchanges(self.net.knobs, starts[0].config) if key_of(each) not in self._known]
            steps = steps[:_MAX_STEPS]
            costs = self.costs_of(steps)
            fits = [each for each, cost in zip(steps, costs, strict=True) if excess(cost, self.budget) <= 0]
            self.evaluate(fits[: self.options.trials - len(self._known)])

    def _complete(self) -> None:
        """Take steps from the closest candidate if there is none within the budget to start from."""
        while len(self._known) < self.options.trials and (near := self._unknown_neighbours()):
            self.evaluate(near[: min(_BATCH, self.options.trials - len(self._known))])

    def _unknown_neighbours(self) -> list[dict[str, Option]]:
        """Untried neighbors of the best candidates, best first: those within the budget first."""
        ranked = sorted(self.candidates, key=lambda each: (max(each.excess, 0.0), -each.score))
        seen: dict[Key, dict[str, Option]] = {}
        for candidate in ranked[:4]:
            for config in neighbours(self.net.knobs, candidate.config):
                key = key_of(config)
                if key not in self._known:
                    seen.setdefault(key, config)
        return list(seen.values())

    def _show(self) -> None:
        fits = feasible(self.candidates)
        best = (
            f"best within the budget {max(each.score for each in fits):.6g}" if fits else "none within the budget yet"
        )
        front = ", ".join(f"{each.costs[self.main]:.4g} {self.main}: {each.score:.4g}" for each in self._shown())
        self.report(f"candidate {len(self._known)} of {self.options.trials}: {best}; front {front}")

    def _shown(self) -> list[Candidate]:
        return pareto(self.candidates, self.main)[:6]


def _same(candidate: Candidate) -> Candidate:
    return candidate


def _smallest_nets(knobs: Sequence[Knob]) -> list[dict[str, Option]]:
    """The smallest structure with each precision, and with each form of choices, the same for all layers."""
    configs = []
    for index in range(max((len(knob.options) for knob in knobs if not knob.is_ordered), default=1)):
        config = smallest(knobs)
        for knob in knobs:
            if not knob.is_ordered:
                config[knob.name] = knob.options[min(index, len(knob.options) - 1)]
        configs.append(config)
    return configs


def _depths(knobs: Sequence[Knob]) -> list[dict[str, Option]]:
    """Residual layers left out: none, each of the first ones separately, and all."""
    layers = [knob.name for knob in knobs if knob.kind == "layer"]
    alone: list[dict[str, Option]] = [{name: False} for name in layers[:_MAX_LAYERS]]
    every: dict[str, Option] = dict.fromkeys(layers, False)
    return [{}, *alone, *([every] if len(layers) > 1 else [])]


def unreachable(nearest: Costs, budget: Mapping[str, float]) -> OptionError:
    """The error for a budget that no net meets."""
    close = ", ".join(f"{nearest[name]:.4g} {name} of {limit:g}" for name, limit in budget.items())
    return OptionError(
        f"no net of the space meets the budget; the closest takes {close}",
        "allow more, or give space= smaller options (channels, layers, resolution, precision)",
    )


def check_choices(knobs: Sequence[Any]) -> None:
    """Raise OptionError if there is nothing to decide."""
    if not knobs:
        raise OptionError(
            "the space has no choice: no channels, heads, residual layer, filter or block of the net can change",
            "give space= more options, or declare blocks with tensorwright.choice(a, b)",
        )


_CONTENDERS = 3  # per finalist
_SHARE_OF_TRAINING = 4  # a contender's training is this many times shorter than a finalist's

Chosen = tuple[Candidate, Finished]


class Finalists:
    """Selects and finishes candidates at the end of a search.

    Scores with shared weights do not predict those after training well, least of all between nets of different depth.
    So the best candidates of each selection of layers and forms, and the best evenly pruned one, are first trained for
    a short time; the best ones after that are fully trained. Without `batches` there are no short trainings: the
    candidates with the best scores, and the best evenly pruned one, are finished. `fits`: returns True if a candidate's
    whole module meets the budget.
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
            AccuracyError: quantization loses more than allowed, in all of them.
            UserError: training or compiling failed.
        """
        ranked = feasible(self._explorer.candidates)
        even = self._explorer.evenly_pruned[:1]
        count = self._options.finalists
        order: Iterable[Candidate]
        if self._options.batches is None:
            order, count = [*even, *(each for each in ranked if each not in even)], count + len(even)
        else:
            order = self._raced([*even, *(each for each in round_robin(ranked) if each not in even)])
        finished = self._finished(order, count, None, "finish finalist")
        if not finished:
            nearest = min(ranked or self._explorer.candidates, key=lambda each: each.excess)
            problem = self._failed or unreachable(nearest.costs, self._budget)
            problem.reached = self._explorer.candidates
            raise problem
        return max(finished, key=lambda each: each[1].score)

    def _raced(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Contenders, the best after a short training first."""
        epochs = max(1, self._options.epochs_of_finalists // _SHARE_OF_TRAINING)
        found = self._finished(candidates, _CONTENDERS * self._options.finalists, epochs, "train contender")
        return [candidate for candidate, _ in sorted(found, key=lambda each: -each[1].score)]

    def _finished(self, candidates: Iterable[Candidate], count: int, epochs: int | None, what: str) -> list[Chosen]:
        """The first `count` candidates that can be finished within the budget."""
        results: list[Chosen] = []
        for candidate in candidates:
            if len(results) == count:
                break
            if not self._is_within(candidate):
                continue
            self._report(f"{what} {len(results) + 1}")
            try:
                finished = self._finisher.finish(candidate.config, epochs)
            except AccuracyError as error:
                self._failed = error
                continue
            except TensorwrightError as error:
                error.reached = self._explorer.candidates
                raise
            if excess(finished.costs, self._budget) <= 0:
                results.append((candidate, finished))
        return results

    def _is_within(self, candidate: Candidate) -> bool:
        """True if it fits; queried once, since times vary."""
        key = key_of(candidate.config)
        if key not in self._known:
            self._known[key] = self._fits(candidate)
        return self._known[key]


def round_robin(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best of each selection of layers and forms, then the second best of each, and so on."""
    groups: dict[tuple[tuple[str, Option], ...], list[Candidate]] = {}
    for each in ranked:
        groups.setdefault(_forms(each.config), []).append(each)
    most = max(map(len, groups.values()), default=0)
    return [group[index] for index in range(most) for group in groups.values() if index < len(group)]


def _forms(config: Config) -> tuple[tuple[str, Option], ...]:
    return tuple((name, option) for name, option in sorted(config.items()) if is_form(name))
