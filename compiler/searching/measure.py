"""Sources of kernel times: timed here, or computed by the target's own model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import count
from statistics import median

import tvm

import targets
from compiler.driver.compile import compile as compile_model
from compiler.errors import OptionError, UserError
from compiler.profiling.profile import profile
from compiler.profiling.timing import run_seconds
from compiler.profiling.workload import prepare
from compiler.searching.layer_table import KernelTimes, LoweredModel, Measured, Run, pipeline_of
from compiler.tuning.measuring.estimating import EstimatingPool
from compiler.tuning.measuring.messages import AS_IT_IS, Argument, KernelTask
from compiler.tuning.measuring.pool import Trial
from compiler.tuning.tasks import kernel_calls, tasks_of, weight_bytes
from schedules.config import Config
from schedules.ir.stages import dtype_of, kernels_of, shape_of
from targets.errors import TargetError
from targets.measure import Measurer

# Kernels timed on this machine, in the modules that call them.


_SECONDS = 0.3  # seconds of timing kernels, and of timing runs


class TimedHere:
    """Times whole modules on this machine, kernel by kernel: the median of many runs.

    A kernel is measured in context, between others: in isolation it would find its data in other caches.
    """

    def __init__(self, target: targets.Target, threads: int | None) -> None:
        self._target, self._threads = target, threads
        self._runs_on = target.machine.cores if threads is None else threads

    @property
    def name(self) -> str:
        return f"timed on {self._runs_on} thread(s)"

    def some(self, candidates: Sequence[LoweredModel], wanted: AbstractSet[str]) -> Measured:
        """Measure the kernels of the candidate with the most wanted ones. Raises UserError, like `whole`."""
        return self.whole(max(candidates, key=lambda each: len(wanted & set(each.calls))))

    def whole(self, lowered: LoweredModel) -> Measured:
        """Measure a module as compiled. Raises UserError if it cannot be built or run."""
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
        # Kernels that the profiler does not see cannot be separated from the rest of a run.
        found = {key: median(by_key.get(key, [0.0])) for key in lowered.calls}
        own = sum(found[key] * count for key, count in lowered.calls.items())
        return Measured(found, Run(lowered, run, own))

    def close(self) -> None:
        """Do nothing: modules run in this process."""


# Costs of kernels from a target's own cost model, in worker processes: the same numbers in every run.

_AT_ONCE = 16  # kernels that are estimated before they are stored


class Modelled:
    """Estimates kernels; its processes live until `close`, since each takes seconds to start."""

    def __init__(self, target: targets.Target, measurer: Measurer) -> None:
        self._target, self._measurer = target, measurer
        self._pool: EstimatingPool | None = None
        self._numbers = count()

    @property
    def name(self) -> str:
        return str(self._measurer.measure())

    def some(self, candidates: Sequence[LoweredModel], wanted: AbstractSet[str]) -> Measured:
        """Estimate a dozen or so of the kernels. Raises UserError for a kernel that the model cannot estimate."""
        tasks: dict[str, tuple[KernelTask, Config]] = {}
        shared: dict[str, str] = {}
        for lowered in candidates:
            for names, task, config in self._tasks(lowered):
                keys = [key for name in names if (key := lowered.keys[name]) in wanted and key not in shared]
                if keys:
                    shared |= dict.fromkeys(keys, keys[0])
                    tasks[keys[0]] = (task, config)
            if len(tasks) >= _AT_ONCE:
                break
        if not shared:
            raise UserError(f"{self.name} cannot tell the cost of {len(wanted)} kernel(s): no schedule rule takes them")
        found = self._estimated(tasks)
        return Measured({key: found[first] for key, first in shared.items()})

    def _tasks(self, lowered: LoweredModel) -> list[tuple[list[str], KernelTask, Config]]:
        """Kernels grouped by equal workloads, by name; the first represents the group."""
        extracted = tasks_of(lowered.mod, self._target)
        # Kernels that only run when a module is loaded need no cost.
        called = {name: why for name, why in extracted.skipped.items() if lowered.keys.get(name) in lowered.calls}
        if called:
            name, reason = next(iter(called.items()))
            raise UserError(f"the kernel {name!r} has no cost: {reason}", "give shapes= with numbers")
        return [(task.names, task.kernel, task.default) for task in extracted.tasks]

    def whole(self, lowered: LoweredModel) -> Measured:
        """The sum over the kernels as `compile` schedules them in this module, each estimated again; the table's
        numbers are those of the first module with the kernel."""
        mod = pipeline_of(lowered.model, self._target, until="schedule", without=("lift-workspaces",)).mod
        calls, nbytes = kernel_calls(mod), weight_bytes(mod)
        tasks: dict[str, tuple[KernelTask, Config]] = {}
        counts: dict[str, int] = {}
        for variable, function in kernels_of(mod):
            name = str(variable.name_hint)
            if not calls.counts[name]:
                continue
            arguments = tuple(
                Argument(tuple(map(int, shape_of(each))), dtype_of(each), is_constant=at in calls.constants[name])
                for at, each in enumerate(function.params)
            )
            # Workers cache by key, and a kernel of the same name in another module is a different one.
            key = f"{AS_IT_IS}/{next(self._numbers)}/{name}"
            counts[key] = calls.counts[name]
            tasks[key] = (KernelTask(key, AS_IT_IS, tvm.ir.save_json(function), arguments, nbytes), Config())
        found = self._estimated(tasks)
        seconds = sum(found[key] * count for key, count in counts.items())
        return Measured({}, Run(lowered, seconds, seconds))

    def _estimated(self, tasks: Mapping[str, tuple[KernelTask, Config]]) -> dict[str, float]:
        """Seconds per call of each kernel, by its key."""
        if self._pool is None:
            self._pool = EstimatingPool(self._target, self._measurer)
        for key, (task, _) in tasks.items():
            self._pool.define(replace(task, key=key))
        trials = [Trial(key, config) for key, (_, config) in tasks.items()]
        outcomes = self._pool.trials(trials, lambda trial, outcome: None)
        seconds: dict[str, float] = {}
        for trial, outcome in zip(trials, outcomes, strict=True):
            if outcome.seconds is None:
                raise UserError(
                    f"{self.name} cannot tell the cost of kernel {tasks[trial.key][0].key!r}: {outcome.note}"
                )
            seconds[trial.key] = outcome.seconds
        return seconds

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


# Selects the source of a target's kernel times: timed here, or computed by the target's own model.


def kernel_times(target: targets.Target, threads: int | None) -> KernelTimes:
    """The source of a target's kernel times. Raises OptionError if there is no source of kernel times for the target,
    or its tool is missing."""
    if target.fits_this_machine() and target.times_kernels:
        return TimedHere(target, threads)
    measurer = target.measurer()
    if measurer is None or measurer.unit != "s":
        raise OptionError(
            f"target {target.name!r} runs elsewhere, and has no cost model of kernels",
            "limit mb or peak_mb, or name a target that this machine runs",
        )
    try:
        return _checked(Modelled(target, measurer))
    except TargetError as error:
        raise OptionError(f"{measurer.name}: {error.message}", error.hint) from error


def _checked(model: Modelled) -> Modelled:
    """Raise an error if the model's tool is missing."""
    _ = model.name
    return model
