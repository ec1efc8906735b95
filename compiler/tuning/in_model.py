"""How long chosen configs and ways take in the model itself: the last word on each.

Alone, a kernel finds its input in the caches and has the memory to itself. In the model, other kernels' data lies
there: what reads more weights than it has to, loses again what it won. So the model is compiled with and without the
choices, both are run in turns, and each kernel's time in one is compared with that of the kernel it replaces in the
other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from compiler.driver import packed
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.reference import random_inputs
from compiler.runtime import Module
from compiler.tuning.state import TaskState
from schedules.apply import record_key
from schedules.config import Config
from schedules.rule import ScheduleRule
from schedules.ways import Way

if TYPE_CHECKING:
    import targets

_ROUNDS = 5
_ROUND_SECONDS = 0.5


class Choices:
    """What a session found to be fastest, as `PipelineContext.configs` and `.choose` take it.

    Attributes:
        configs: by record key, of the kernels that are not to run on their default.
        ways: of the kernels that are to be computed in another way, the key of that way.
    """

    def __init__(self, states: Sequence[TaskState]) -> None:
        self.configs: dict[str, Config] = {}
        self.ways: dict[str, str] = {}
        for state in states:
            if state.task.instead_of or state.best is None:
                continue
            chosen = state.fastest_way
            if chosen is not state:
                self.ways[state.task.key] = chosen.task.key
            assert chosen.best is not None
            if chosen.best[0] != chosen.task.default:
                self.configs[chosen.task.key] = chosen.best[0]

    def __bool__(self) -> bool:
        return bool(self.configs or self.ways)

    def __call__(self, rule: ScheduleRule, workload: Any) -> Config | None:
        return self.configs.get(record_key(rule, workload))

    def choose(self, ways: Sequence[Way]) -> int:
        """A `schedules.ways.Choice`."""
        keys = [way.key for way in ways]
        wanted = self.ways.get(keys[0])
        return keys.index(wanted) if wanted in keys else 0


@dataclass
class Times:
    """Of a module in the model: samples of a call's seconds by record key, and of the whole run's."""

    kernels: dict[str, list[float]] = field(default_factory=dict)
    runs: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        """Seconds of a run."""
        return median(self.runs)


def measure_in_model(
    model: ImportedModel, target: targets.Target, options: Mapping[str, Any], choices: Choices, threads: int | None
) -> tuple[Times, Times]:
    """The untuned module's times and those of the module with the choices, in turns.

    Raises:
        UserError: the model can not be compiled or run here.
    """
    from compiler.profiling.profile import profile

    sides = [(_compiled(model, target, options, each, threads), Times()) for each in (None, choices)]
    inputs = random_inputs(model.inputs)
    for number in range(_ROUNDS):
        for (module, keys), times in sides if number % 2 == 0 else reversed(sides):
            measured = profile(module, inputs, seconds=_ROUND_SECONDS, threads=target.machine.cores)
            times.runs.append(measured.latency.p50)
            calls: dict[str, list[tuple[float, int]]] = {}
            for kernel in measured.kernels:
                if kernel.name in keys:
                    calls.setdefault(keys[kernel.name], []).append((kernel.seconds, kernel.calls))
            for key, each in calls.items():
                seconds = sum(total for total, _ in each) / sum(count for _, count in each)
                times.kernels.setdefault(key, []).append(seconds)
    return sides[0][1], sides[1][1]


def _compiled(
    model: ImportedModel,
    target: targets.Target,
    options: Mapping[str, Any],
    choices: Choices | None,
    threads: int | None,
) -> tuple[Module, dict[str, str]]:
    """The module, and the record key of each kernel by its name."""
    context = PipelineContext(
        target=target,
        machine=target.machine,
        options={**options, "checks": model.checks},
        configs=choices,
        choose=None if choices is None else choices.choose,
    )
    pipeline = run_pipeline(model.mod, context)
    keys = {kernel.kernel: kernel.workload for kernel in pipeline.report["apply-schedules"].kernels}
    return Module(packed(model, "tuned", target, pipeline, threads), threads=target.machine.cores), keys
