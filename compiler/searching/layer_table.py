"""What each kernel takes on the target, measured or computed once; a candidate's time is the sum over its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

import targets
from compiler.artifact.storage import write_json
from compiler.driver.compile import compile as compile_model
from compiler.errors import StorageError
from compiler.frontends.imported_model import ImportedModel
from compiler.profiling.profile import profile
from compiler.profiling.timing import run_seconds
from compiler.profiling.workload import prepare
from compiler.searching.lowered import LoweredModel, lower

_SECONDS = 0.3  # of watching kernels, and of timing runs


class WholeRun(BaseModel):
    """A module whose kernels the table knows, and what it takes as a whole.

    Attributes:
        kernels: seconds of its kernels by the table when it was measured; None where it filled the table itself.
        seconds: of a run.
        calls: of kernels in a run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernels: float | None
    own: float
    seconds: float
    calls: int


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid")

    measure: str
    kernels: dict[str, float]
    whole: list[WholeRun]


class KernelTimes(Protocol):
    """The measure of a target."""

    @property
    def name(self) -> str:
        """What it is, in words; the numbers of two measures do not mix."""

    def times(
        self, model: ImportedModel, lowered: LoweredModel, known: frozenset[str]
    ) -> tuple[dict[str, float], float | None]:
        """(seconds of a call of each kernel by its name in the module, seconds of a whole run where it is measured)

        Args:
            known: keys that need not be among them.
        """


class TimedHere:
    """Times whole modules on this machine, kernel by kernel: the median of many runs.

    A kernel is measured where it will run, between others: alone it would find its data in other caches.
    """

    def __init__(self, target: targets.Target, threads: int | None) -> None:
        self._target, self._threads = target, threads
        self._runs_on = target.machine.cores if threads is None else threads

    @property
    def name(self) -> str:
        return f"timed on {self._runs_on} thread(s)"

    def times(
        self, model: ImportedModel, lowered: LoweredModel, known: frozenset[str]
    ) -> tuple[dict[str, float], float | None]:
        """Raises UserError where the module cannot be built or run."""
        module = compile_model(model, self._target, threads=self._threads, records=False, progress=None)
        watched = profile(module, seconds=_SECONDS, threads=self._runs_on)
        totals: dict[str, list[float]] = {}
        for kernel in watched.kernels:
            total = totals.setdefault(kernel.name, [0.0, 0.0])
            total[0] += kernel.seconds
            total[1] += kernel.calls
        workload = prepare(module, threads=self._runs_on)
        run = workload.on_its_threads(lambda: run_seconds(workload.run, threads=self._runs_on, budget=_SECONDS))
        return {name: seconds / calls for name, (seconds, calls) in totals.items() if calls}, run


class LayerTable:
    """Fills itself as candidates need kernels that it lacks.

    Args:
        measure: of the target.
        path: where to keep it, so that a search that goes on measures nothing twice; None: in memory.
    """

    def __init__(self, target: targets.Target, measure: KernelTimes, path: Path | None = None) -> None:
        self._target, self._measure, self._path = target, measure, path
        self._contents = _read(path, measure.name)

    def lowered(self, model: ImportedModel) -> LoweredModel:
        """The kernels of a model."""
        return lower(model, self._target)

    def missing(self, lowered: LoweredModel) -> set[str]:
        """Keys that the table lacks."""
        return set(lowered.calls) - set(self._contents.kernels)

    def fill(self, model: ImportedModel, lowered: LoweredModel) -> float | None:
        """Measure a model's kernels, and keep those that were not known; its whole run as well, whose seconds these
        are."""
        before = None if self.missing(lowered) else self._sum(lowered)
        by_name, run = self._measure.times(model, lowered, frozenset(self._contents.kernels))
        by_key: dict[str, list[float]] = {}
        for name, seconds in by_name.items():
            if name in lowered.keys:
                by_key.setdefault(lowered.keys[name], []).append(seconds)
        found = {key: median(each) for key, each in by_key.items()}
        for key in lowered.calls:  # what the profiler does not see cannot be told apart from the rest of a run
            self._contents.kernels.setdefault(key, found.get(key, 0.0))
        if run is not None:
            own = sum(found.get(key, 0.0) * count for key, count in lowered.calls.items())
            whole = WholeRun(kernels=before, own=own, seconds=run, calls=lowered.count)
            self._contents.whole.append(whole)
        if self._path is not None:
            write_json(self._path, self._contents.model_dump())
        return run

    def seconds(self, lowered: LoweredModel) -> float:
        """Of a run whose kernels are all known."""
        return self._sum(lowered) + self._per_call * lowered.count

    @property
    def _per_call(self) -> float:
        """Seconds of a run beyond its kernels, for each call: the median of the modules that were run whole."""
        found = [(each.seconds - each.own) / each.calls for each in self._contents.whole if each.calls]
        return median(found) if found else 0.0

    def _sum(self, lowered: LoweredModel) -> float:
        return sum(self._contents.kernels[key] * count for key, count in lowered.calls.items())

    @property
    def kernels(self) -> int:
        """How many it holds."""
        return len(self._contents.kernels)

    @property
    def measure(self) -> str:
        """What its numbers are."""
        return self._measure.name

    def errors(self) -> list[float]:
        """Of the modules that were run whole after all of their kernels were known: |table - run| / run."""
        return [
            abs(each.kernels + self._per_call * each.calls - each.seconds) / each.seconds
            for each in self._contents.whole
            if each.kernels is not None
        ]


def most_needed(missing: Sequence[set[str]]) -> int | None:
    """Which of several candidates to measure next: the one with most kernels that nobody knows; None when all are."""
    best = max(range(len(missing)), key=lambda index: len(missing[index]), default=None)
    return None if best is None or not missing[best] else best


def _read(path: Path | None, measure: str) -> _Contents:
    empty = _Contents(measure=measure, kernels={}, whole=[])
    if path is None or not path.exists():
        return empty
    try:
        contents = _Contents.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StorageError(f"{path} is no table of layers: {error}", "remove it, or name another storage=") from error
    if contents.measure != measure:
        raise StorageError(
            f"{path} holds numbers {contents.measure!r}, this search needs {measure!r}", "name another storage="
        )
    return contents
