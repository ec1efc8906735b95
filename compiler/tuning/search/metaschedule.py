"""TVM's MetaSchedule (Shao et al. 2022) for kernels without a rule: their one knob is a schedule's trace.

Its space generator and evolutionary search propose, and its cost model ranks; building, checking, timing and recording
are ours. Kernels with knobs of a rule are searched as by "evolutionary".
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm

from compiler.tuning.search import Score, searches
from compiler.tuning.search.evolutionary import Evolutionary
from compiler.tuning.state import TaskState
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.ir.stages import Kernel
from schedules.ir.tvm_private import tune_context
from schedules.stages.rules import TRACE, new_schedule, trace_text, traced_schedule

if TYPE_CHECKING:
    from compiler.tuning.tasks import Task

_ROUND = 16
_NO_END = 1_000_000
_EMPTY_ROUNDS = 3
_POPULATION = 64  # each is a replay of a trace, some milliseconds
_GENERATIONS = 2
_SLOW = 1e10  # seconds that TVM's tuner records for a failed candidate


@searches.register("metaschedule")
class MetaSchedule:
    """Proposes traces for kernels that no rule of an operator family serves, configs for all others."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._others = Evolutionary(seed)
        self._kernels: dict[str, _KernelSearch] = {}

    def serves(self, task: Task) -> bool:
        """True for kernels with knobs or loops: traces need no listed choices."""
        return task.space.size > 1 or (TRACE in task.space.knobs and task.operations > 0)

    def propose(self, state: TaskState, score: Score, count: int) -> list[Config]:
        if TRACE not in state.task.space.knobs:
            return self._others.propose(state, score, count)
        key = state.task.key
        if key not in self._kernels:
            self._kernels[key] = _KernelSearch(state, self._seed)
        return self._kernels[key].propose(state, count)


class _KernelSearch:
    """The search for one kernel, with its database of measured schedules."""

    def __init__(self, state: TaskState, seed: int) -> None:
        from tvm.s_tir import meta_schedule as ms

        self._ms = ms
        self._function = tvm.ir.load_json(state.task.kernel.function)
        module = new_schedule(self._function).mod
        self._target = tvm.target.Target({"kind": "llvm", "num-cores": state.machine.cores})
        # Named rules: those "from the target" would multiply bytes by an intrinsic that LLVM no longer accepts.
        space = ms.space_generator.PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm")
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=_POPULATION, init_min_unmeasured=_ROUND, genetic_num_iters=_GENERATIONS
        )
        self._context = _context(ms, module, self._target, space, strategy, seed + 1)
        self._database = ms.database.MemoryDatabase()
        self._workload = self._database.commit_workload(module)
        self._arguments = ms.arg_info.ArgInfo.from_entry_func(module)
        self._model = ms.cost_model.XGBModel(num_warmup_samples=_ROUND, num_tuning_cores=1, verbose_eval=0)
        self._known: set[Config] = set()
        self._waiting: deque[tuple[Config, Any]] = deque()
        self._announced: list[tuple[Config, Any]] = []
        self._learn(state)
        self._context.pre_tuning(_NO_END, _ROUND, database=self._database, cost_model=self._model)

    def propose(self, state: TaskState, count: int) -> list[Config]:
        """Traces that were not tried yet; none if rounds find nothing new."""
        self._learn(state)
        for _ in range(_EMPTY_ROUNDS):
            if self._waiting:
                break
            self._next_round(state)
        return [self._waiting.popleft()[0] for _ in range(min(count, len(self._waiting)))]

    def _next_round(self, state: TaskState) -> None:
        if self._announced:
            results = [self._result(state.results.get(config)) for config, _ in self._announced]
            self._context.notify_runner_results([candidate for _, candidate in self._announced], results)
        candidates = self._context.generate_measure_candidates() or []
        self._announced = [(Config.of({TRACE: trace_text(each.sch)}), each) for each in candidates]
        self._waiting += [each for each in self._announced if each[0] not in state.results]

    def _learn(self, state: TaskState) -> None:
        """Add new results: of this search, and of earlier runs from their traces."""
        fresh: list[tuple[Any, Any]] = []
        for config, seconds in state.results.items():
            if config in self._known or not config[TRACE]:
                continue
            self._known.add(config)
            try:
                schedule = traced_schedule(Kernel.of(self._function), str(config[TRACE]))
            except NotScheduledError:
                continue  # recorded with another version of TVM
            candidate = self._ms.MeasureCandidate(schedule, self._arguments)
            fresh.append((candidate, self._result(seconds)))
            times = [seconds if seconds is not None else _SLOW]
            record = self._ms.database.TuningRecord(
                schedule.trace, self._workload, times, self._target, self._arguments
            )
            self._database.commit_tuning_record(record)
        if fresh:
            self._model.update(self._context, [each for each, _ in fresh], [each for _, each in fresh])

    def _result(self, seconds: float | None) -> Any:
        good = seconds is not None and math.isfinite(seconds)
        return self._ms.runner.RunnerResult([seconds] if good else None, None if good else "failed")


def _context(ms: object, module: object, target: object, space: object, strategy: object, seed: int) -> Any:
    """A `TuneContext`, made without its Python constructor, which first parses the intrinsics of all processors and
    often takes longer than the search itself; the named rules use none of them."""
    from tvm.s_tir.meta_schedule.logging import get_logger, get_logging_func

    return tune_context(module, target, space, strategy, (seed, get_logging_func(get_logger(__name__))))
