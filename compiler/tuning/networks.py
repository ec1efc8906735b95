"""Tuning of a whole network whose kernels have no separate cost: an accelerator's settings, by cycles.

The search is a coordinate descent over `Network.space`: first Vela's options, then groups of related settings, then
each setting, until a round finds nothing. It is deterministic, except that a time budget may end it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, product

import targets
from compiler.driver.compile import model_name, translated_target_errors
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.records.identity import model_fingerprint, target_description
from compiler.records.library import NETWORK_RULE, NETWORK_VERSION, read_current
from compiler.records.records import ModelLine, Record, RecordWriter
from compiler.reports.formatting import format_bytes
from compiler.tuning.result import NetworkResult, TuneResult, TuningInterrupted
from compiler.tuning.settings import TuningOptions
from compiler.tuning.state import Progress
from targets.errors import TargetError
from targets.measure import Measurer, Network, NetworkCost, NetworkMeasurer, Setting

_TOGETHER = 64  # combinations of settings tried together
_ROUNDS = 4


def tune_network(
    source: object, model: ImportedModel, target: targets.Target, measurer: NetworkMeasurer, options: TuningOptions
) -> TuneResult:
    """Search the settings of a network on a target's accelerator, and record them.

    Raises:
        OptionError: no part of the model runs on the accelerator, or no settings meet the memory limit.
        StorageError: the records cannot be written.
        TuningInterrupted: a KeyboardInterrupt; it holds the result so far.
    """
    began = time.monotonic()
    network = _network(model, target, measurer, options)
    key = model_fingerprint(model.mod, options.precision)
    with RecordWriter.in_folder(options.folder, target_description(target)) as writer:
        earlier = read_current(writer.path)
        mine = [each for each in earlier.records if (each.rule, each.workload) == (NETWORK_RULE, key)]
        known = {each.config_key: each.cycles or math.inf for each in mine if each.measure == measurer.measure()}
        log = TrialLog(writer, key, measurer, options, began)
        search = NetworkSearch(network, log, known if options.memory_limit is None else {})
        interrupted = False
        try:
            search.run()
        except KeyboardInterrupt:
            interrupted = True
        _check_limit(search.best, options.memory_limit, target)
        writer.append(
            ModelLine(
                target=writer.target,
                model=key,
                name=model_name(source),
                settings=search.chosen,
                untuned=search.default.cost,
                tuned=search.best.cost,
                measure=measurer.measure(),
                device="",
                unix_time=int(time.time()),
            )
        )
    result = TuneResult(
        tasks=(),
        before=search.default.cost,
        after=search.best.cost,
        seconds=time.monotonic() - began,
        trials=log.trials,
        resumed=len(known),
        records=writer.path,
        method="",
        measure=measurer.measure(),
        history=tuple(log.progress.history),
        problems=tuple(earlier.problems),
        interrupted=interrupted,
        network=NetworkResult(search.chosen, search.default, search.best),
    )
    if interrupted:
        raise TuningInterrupted(result)
    return result


def network_cost(
    model: ImportedModel, target: targets.Target, settings: Mapping[str, Setting] | None = None
) -> NetworkCost:
    """Cost of one run of a quantized model on a target's accelerator, in the unit of the target's measurer. Raises
    OptionError if the target has no such cost, its tools are missing, or no part of the model runs there.

    Args:
        model: quantized, by `quantize` or `uncalibrated` for this target.
        settings: settings of a tuning; None: the defaults.
    """
    measurer = target.measurer()
    if not isinstance(measurer, NetworkMeasurer):
        raise OptionError(f"target {target.name!r} has no cost of a whole network", "name a target with an accelerator")
    try:
        return _network(model, target, measurer, TuningOptions()).cost(settings or {})
    except TargetError as error:
        raise OptionError(error.message, error.hint) from error


def _network(
    model: ImportedModel, target: targets.Target, measurer: NetworkMeasurer, options: TuningOptions
) -> Network:
    context = PipelineContext(
        target=target, machine=target.machine, options=PassOptions(options.precision, model.checks)
    )
    prepared = run_pipeline(model.mod, context, until="compress")
    try:
        return measurer.network(prepared.mod, options.memory_limit)
    except TargetError as error:
        raise OptionError(error.message, error.hint) from error


def _check_limit(best: NetworkCost, limit: int | None, target: targets.Target) -> None:
    if limit is not None and best.memory > limit:
        raise OptionError(
            f"no settings found keep the network to {format_bytes(limit)} of SRAM on {target.name!r}: the least is"
            f" {format_bytes(best.memory)} ({best.memory:,} bytes)",
            "raise the limit, or make the model smaller",
        )


@dataclass
class TrialLog:
    """Records trials, and reports them."""

    writer: RecordWriter
    model: str
    measurer: Measurer
    options: TuningOptions
    began: float
    trials: int = 0
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(states=(), phase="search", unit="cycles", limit_trials=self.options.trials)

    def add(self, settings: Mapping[str, Setting], cost: NetworkCost | None, status: str, note: str = "") -> None:
        """Add one trial; `cost` is None if it failed."""
        self.trials += 1
        record = Record(
            target=self.writer.target,
            rule=NETWORK_RULE,
            rule_version=NETWORK_VERSION,
            workload=self.model,
            config=dict(settings),
            status="ok" if status == "ok" else "wrong-numbers" if status == "wrong-numbers" else "build-error",
            cycles=None if cost is None else cost.cost,
            is_default=not settings,
            device="",
            measure=self.measurer.measure(),
            unix_time=int(time.time()),
            note=note[:200],
        )
        self.writer.append(record)

    def tell(self, default: NetworkCost, best: NetworkCost) -> None:
        """Call the user's progress function."""
        progress = self.progress
        progress.seconds, progress.trials = time.monotonic() - self.began, self.trials
        if best.cost < (progress.now or math.inf):
            progress.history.append((progress.seconds, self.trials, best.cost))
        progress.before, progress.now = default.cost, best.cost
        if self.options.progress is not None:
            self.options.progress(progress)

    @property
    def is_over(self) -> bool:
        """True if the trials or the time are used up."""
        over = self.options.time_budget is not None and time.monotonic() - self.began > self.options.time_budget
        return over or (self.options.trials is not None and self.trials >= self.options.trials)


def _neighbors(names: Sequence[str], groups: Sequence[tuple[str, ...]]) -> dict[str, set[str]]:
    """The settings that may be worth trying again after a change of each: those of its groups, and adjacent ones."""
    near: dict[str, set[str]] = {name: set() for name in names}
    for group in (*groups, *pairwise(names)):
        for name in group:
            near[name].update(group)
    return near


class NetworkSearch:
    """The coordinate descent. `default`, `best`: costs; `best` is that of the settings `chosen`, which omit
    defaults."""

    def __init__(self, network: Network, log: TrialLog, known: Mapping[str, float]) -> None:
        self._network, self._log = network, log
        self._limit = network.memory_limit
        self._known = known
        self._seen: set[str] = set()
        self.chosen: dict[str, Setting] = {}
        with translated_target_errors():
            self.default = network.cost({})
        self.best = self.default
        self._log.add({}, self.default, "ok")

    def run(self) -> None:
        """Search until nothing is found or the limits are reached."""
        grouped = list(self._network.groups)
        options = [name for name in self._network.space if name in self._network.options]
        rest = [name for name in self._network.space if name not in options]
        near = _neighbors(rest, grouped)
        moved = set(self._network.space)
        for _ in range(_ROUNDS):
            previous = dict(self.chosen)
            for names in ((*options,), *grouped, *((name,) for name in rest)):
                if not any(name in moved or near.get(name, set()) & moved for name in names):
                    continue
                for candidate in self._candidates(names):
                    if self._log.is_over:
                        return
                    self._try(candidate)
            moved = {name for name in self._network.space if previous.get(name) != self.chosen.get(name)}

    def _candidates(self, names: tuple[str, ...]) -> Iterator[dict[str, Setting]]:
        """The chosen settings with each combination of values for `names`, computed lazily."""
        for values in islice(product(*(self._network.space[name] for name in names)), _TOGETHER):
            changed = {**self.chosen, **dict(zip(names, values, strict=True))}
            yield {name: value for name, value in changed.items() if value != self._network.space[name][0]}

    def _try(self, settings: dict[str, Setting]) -> None:
        probe = Record(target="", rule="", rule_version=0, workload="", config=dict(settings)).config_key
        if probe in self._seen or not settings or self._known.get(probe, -math.inf) >= self.best.cost:
            return
        self._seen.add(probe)
        try:
            cost = self._network.cost(settings)
        except TargetError as error:
            self._log.add(settings, None, "build-error", error.message)
            return
        if self._rank(cost) < self._rank(self.best):
            if not self._network.computes_the_same(settings):
                self._log.add(settings, None, "wrong-numbers")
                return
            self.best, self.chosen = cost, settings
        self._log.add(settings, cost, "ok")
        self._log.tell(self.default, self.best)

    def _rank(self, cost: NetworkCost) -> tuple[float, float, float]:
        """Sort key, less is better: bytes above the limit, cycles, bytes."""
        above = max(0, cost.memory - self._limit) if self._limit is not None else 0
        return above, cost.cost, cost.memory
