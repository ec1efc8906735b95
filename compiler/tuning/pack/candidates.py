"""Configs of a kernel that go into a pack, and their code, without duplicates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
import tvm_ffi

from compiler.passes.schedule.lift_workspaces import with_equal_workspaces
from compiler.tuning.tasks import Task
from schedules.config import Config
from schedules.errors import ScheduleError
from schedules.gpu.product_rule import TiledProductRule
from schedules.ir.stages import Kernel
from schedules.selection.apply import apply_rule

if TYPE_CHECKING:
    import targets
    from schedules.ir.tvm_types import PrimFunc

_HOPELESS = 4.0  # times the least estimate


@dataclass(frozen=True)
class Candidate:
    """Code of a task: the configs that all give it, and the scheduled function."""

    configs: tuple[Config, ...]
    function: PrimFunc


@dataclass(frozen=True)
class Candidates:
    """Candidates of a task, the rule's default first; `failed` configs and why they give no code.

    Attributes:
        workspaces: how many parameters at the end hold what launches hand to each other.
    """

    task: Task
    chosen: tuple[Candidate, ...]
    workspaces: int
    failed: dict[Config, str]


def ranked_configs(task: Task, machine: Any, known: Collection[Config]) -> list[Config]:
    """The configs of a task that are worth a try: the default, and then those that are not known, most promising first
    by the rule's own units of time where it has some."""
    others = [config for config in task.space if config != task.default]
    if isinstance(task.rule, TiledProductRule):
        costs = {config: task.rule.units(task.workload, config, machine) for config in (task.default, *others)}
        least = min(costs.values())
        others = [config for config in others if costs[config] <= _HOPELESS * least]
        others.sort(key=costs.__getitem__)
    return [task.default, *(config for config in others if config not in known)]


def candidates(task: Task, target: targets.Target, configs: Sequence[Config]) -> Candidates:
    """The code of configs of a task, the first being the default.

    Raises:
        schedules.errors.ScheduleError: the default gives no code.
    """
    kernel = Kernel.of(tvm.ir.load_json(task.kernel.function))
    scheduled: dict[Config, PrimFunc] = {}
    failed: dict[Config, str] = {}
    for config in configs:
        try:
            scheduled[config] = apply_rule(task.rule, kernel, task.workload, config, target.machine)
        except ScheduleError as error:
            if config == task.default:
                raise
            failed[config] = str(error)
    functions, workspaces = with_equal_workspaces(list(scheduled.values()))
    found: dict[int, tuple[list[Config], PrimFunc]] = {}
    for config, function in zip(scheduled, functions, strict=True):
        if function is None:
            failed[config] = "it hands on other buffers between launches than the default"
            continue
        configs_of_code, _ = found.setdefault(tvm_ffi.structural_hash(function), ([], function))
        configs_of_code.append(config)
    chosen = tuple(Candidate(tuple(each), function) for each, function in found.values())
    return Candidates(task, chosen, workspaces, failed)
