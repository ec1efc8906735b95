"""Kernels timed on this machine, in the modules that call them."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from statistics import median

import targets
from compiler.driver.compile import compile as compile_model
from compiler.profiling.profile import profile
from compiler.profiling.timing import run_seconds
from compiler.profiling.workload import prepare
from compiler.searching.layer_table import Measured, Run
from compiler.searching.lowered import LoweredModel

_SECONDS = 0.3  # of watching kernels, and of timing runs


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

    def some(self, candidates: Sequence[LoweredModel], wanted: AbstractSet[str]) -> Measured:
        """The kernels of the candidate with most that are wanted. Raises UserError, as `whole` does."""
        return self.whole(max(candidates, key=lambda each: len(wanted & set(each.calls))))

    def whole(self, lowered: LoweredModel) -> Measured:
        """Raises UserError where the module cannot be built or run."""
        module = compile_model(lowered.model, self._target, threads=self._threads, records=False, progress=None)
        watched = profile(module, seconds=_SECONDS, threads=self._runs_on)
        workload = prepare(module, threads=self._runs_on)
        run = workload.on_its_threads(lambda: run_seconds(workload.run, threads=self._runs_on, budget=_SECONDS))
        totals: dict[str, list[float]] = {}
        for kernel in watched.kernels:
            total = totals.setdefault(kernel.name, [0.0, 0.0])
            total[0] += kernel.seconds
            total[1] += kernel.calls
        by_key: dict[str, list[float]] = {}
        for name, (seconds, calls) in totals.items():
            if calls and name in lowered.keys:
                by_key.setdefault(lowered.keys[name], []).append(seconds / calls)
        # What the profiler does not see cannot be told apart from the rest of a run.
        found = {key: median(by_key.get(key, [0.0])) for key in lowered.calls}
        own = sum(found[key] * count for key, count in lowered.calls.items())
        return Measured(found, Run(lowered, run, own))

    def close(self) -> None:
        """Nothing: modules run in this process."""
