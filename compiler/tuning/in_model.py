"""Measures chosen configs and alternatives in the model itself, which decides on each, and on all together.

A kernel timed in isolation finds its input in the caches and has the memory bandwidth to itself. In the model, the
caches hold other kernels' data: a kernel that reads more weights than necessary loses what it gained in isolation. So
the model is compiled with and without the choices, and both are run alternately, each run in a separate process. Each
kernel's time in one is compared with that of the kernel it replaces in the other; finally, whole runs are compared.
Choices that are not significantly faster there are discarded, so a tuned module is either faster than the untuned one
or identical to it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from types import TracebackType

import targets
from compiler.artifact import write_artifact
from compiler.driver.build import packed
from compiler.errors import UserError
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.records.records import ChosenKernel, ModelLine
from compiler.support.interrupts import uninterrupted
from compiler.tuning.measuring.channel import Worker
from compiler.tuning.measuring.messages import ModelRequest, ModelSetup, ModelTimes
from compiler.tuning.session import Session
from compiler.tuning.state import TaskState
from schedules.config import Config
from schedules.rule import AnyRule, Workload
from schedules.selection.alternatives import Alternative
from schedules.selection.apply import record_key

PAIRS = 6
MIN_PAIRS = 4  # once the time has run out
TURN_SECONDS = 0.3  # seconds of timing kernels, and of timing runs
_MODULE = "compiler.tuning.measuring.model_worker"
_LIMIT = 120.0
_ERRORS = 2.0  # standard errors within which a difference is chance


class Choices:
    """Fastest configs found by a session, for `PipelineContext.configs` and `.choose`.

    Attributes:
        configs: configs by record key, for kernels that do not run with their default.
        alternatives: for kernels computed by an alternative, the key of that alternative.
        chosen: both, in the form that is recorded.
    """

    def __init__(self, states: Sequence[TaskState]) -> None:
        self.configs: dict[str, Config] = {}
        self.alternatives: dict[str, str] = {}
        self.chosen: list[ChosenKernel] = []
        for state in states:
            if not state.is_changed:
                continue
            runs = state.fastest_alternative
            alternative = "" if runs is state else runs.task.key
            assert runs.best is not None
            config, default = runs.best[0], runs.task.default
            if alternative:
                self.alternatives[state.task.key] = alternative
            if config != default:
                self.configs[runs.task.key] = config
            chosen = ChosenKernel(task=state.task.key, way=alternative, config=dict(config), default=dict(default))
            self.chosen.append(chosen)

    def __bool__(self) -> bool:
        return bool(self.configs or self.alternatives)

    def __call__(self, rule: AnyRule, workload: Workload) -> Config | None:
        return self.configs.get(record_key(rule, workload))

    def choose(self, alternatives: Sequence[Alternative]) -> int:
        """A `schedules.selection.alternatives.Choice`."""
        keys = [alternative.key for alternative in alternatives]
        wanted = self.alternatives.get(keys[0])
        return keys.index(wanted) if wanted in keys else 0


@dataclass
class Times:
    """Times of a module, one sample per process: seconds per call by record key, and per run."""

    kernels: dict[str, list[float]] = field(default_factory=dict)
    runs: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        """Seconds per run."""
        return median(self.runs)

    def take(self, found: ModelTimes, keys: Mapping[str, str]) -> None:
        """Add the times from one process; `keys` maps kernel names to record keys."""
        self.runs.append(found.run)
        calls: dict[str, list[tuple[float, int]]] = {}
        for name, each in found.kernels.items():
            if name in keys:
                calls.setdefault(keys[name], []).append(each)
        for key, group in calls.items():
            seconds = sum(total for total, _ in group) / sum(count for _, count in group)
            self.kernels.setdefault(key, []).append(seconds)


@dataclass
class Compared:
    """The untuned module compared with the one with the choices, process by process."""

    untuned: Times = field(default_factory=Times)
    tuned: Times = field(default_factory=Times)

    @property
    def gain(self) -> float:
        """Speedup of tuned over untuned: the geometric mean over the pairs of processes."""
        return math.exp(fmean(self._logarithms()))

    @property
    def spread(self) -> float:
        """The relative uncertainty of the gain: two standard errors of that mean."""
        logarithms = self._logarithms()
        return math.expm1(_ERRORS * stdev(logarithms) / math.sqrt(len(logarithms)))

    @property
    def is_faster(self) -> bool:
        """True if the choices are significantly faster."""
        return self.gain > 1 + self.spread

    @property
    def is_slower(self) -> bool:
        """True if they are significantly slower."""
        return self.gain * (1 + self.spread) < 1

    def _logarithms(self) -> list[float]:
        return [math.log(a / b) for a, b in zip(self.untuned.runs, self.tuned.runs, strict=True)]


@dataclass(frozen=True)
class _Compiled:
    """A module file, and the record key of each kernel by its name."""

    path: Path
    keys: Mapping[str, str]


class ModelComparison:
    """Compares the untuned module of a model with tuned ones.

    Args:
        serial: whether it is timed on one thread, by processor time.
        options: options of the passes, as in `compile`.
        threads: as in `compile`.
    """

    def __init__(
        self,
        model: ImportedModel,
        target: targets.Target,
        options: PassOptions,
        threads: int | None,
        *,
        serial: bool = False,
    ) -> None:
        self._model, self._target, self._options, self._threads = model, target, options, threads
        self._runs_on = 1 if serial else target.machine.cores
        self._folder = tempfile.TemporaryDirectory(prefix="tensorwright-")
        self._untuned: _Compiled | None = None

    def measure(self, choices: Choices, deadline: float = math.inf) -> Compared:
        """Time both modules alternately; only `MIN_PAIRS` pairs once `time.monotonic()` is past the deadline. Raises
        UserError if the model cannot be compiled or run here."""
        if self._untuned is None:
            self._untuned = self._compiled(None, "untuned")
        tuned = self._compiled(choices, "tuned")
        comparison = Compared()
        sides = [(self._untuned, comparison.untuned), (tuned, comparison.tuned)]
        for number in range(PAIRS):
            if number >= MIN_PAIRS and time.monotonic() > deadline:
                break
            for compiled, times in sides if number % 2 == 0 else reversed(sides):
                times.take(self._turn(compiled.path), compiled.keys)
        return comparison

    def _turn(self, path: Path) -> ModelTimes:
        environment = {"TVM_NUM_THREADS": str(self._runs_on)}
        worker = Worker(_MODULE, ModelSetup(str(path), self._runs_on), environment, threads=self._runs_on)
        try:
            times: ModelTimes = worker.ask(ModelRequest(TURN_SECONDS), _LIMIT)
        except UserError as error:
            raise UserError(f"the model could not be run to compare it: its process {error.message}") from error
        finally:
            worker.kill()
        return times

    def _compiled(self, choices: Choices | None, name: str) -> _Compiled:
        target = self._target
        context = PipelineContext(
            target=target,
            machine=target.machine,
            options=self._options,
            configs=choices,
            choose=None if choices is None else choices.choose,
        )
        pipeline = run_pipeline(self._model.mod, context)
        keys = {kernel.kernel: kernel.workload for kernel in pipeline.report.kernels}
        path = Path(self._folder.name) / f"{name}.twm"
        write_artifact(packed(self._model, name, target, pipeline, self._threads), path)
        return _Compiled(path, keys)

    def close(self) -> None:
        """Remove the modules."""
        self._folder.cleanup()

    def __enter__(self) -> ModelComparison:
        return self

    @uninterrupted
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# The end of a tuning run: choices are verified in the whole model, or dropped.

COMPARISON_SECONDS = 2 * PAIRS * (2 * TURN_SECONDS + 1.2)
"""Duration of one comparison, including the start of its processes but not compilation."""
_MAX_COMPARISONS = 3  # replacements of dropped choices are compared, too


def conclude(
    session: Session, comparison: ModelComparison | None, known: ModelLine | None, deadline: float
) -> tuple[float, float] | None:
    """Record the choices for the model: those that win in it, if the whole run does as well; otherwise none.

    An earlier tuning's choices are kept if these neither win nor lose significantly.

    Args:
        comparison: None if the model cannot be run; isolated times then decide.
        known: records of an earlier tuning of the model.
        deadline: in `time.monotonic()`; after it the comparison is kept as short as possible.

    Returns:
        Seconds per run, untuned and tuned; None if nothing was chosen, or not compared.
    """
    if comparison is None:
        session.conclude(Choices(session.states).chosen, None)
        return None
    compared = None
    for _ in range(_MAX_COMPARISONS):
        choices = Choices(session.states)
        if not choices:
            break
        session.announce("compare in the model")
        try:
            compared = comparison.measure(choices, deadline)
        except UserError as error:
            session.problems.append(f"no choice was made: {error.message}")
            session.keep_defaults()
            return None
        if not session.settle_in_model(compared):
            if compared.is_faster:
                session.conclude(choices.chosen, compared)
                return compared.untuned.latency, compared.tuned.latency
            break
    session.keep_defaults()
    if compared is not None and known is not None and known.choices and not compared.is_slower:
        session.problems.append("earlier choices for the model are kept: the new ones are not significantly faster")
        return None
    if compared is not None:
        session.problems.append(
            f"the model is not significantly faster as a whole ({compared.gain:.3f} times, give or take "
            f"{compared.spread:.1%}): it stays untuned"
        )
    session.conclude([], None)
    return None
