"""The tuning tasks of a model: its distinct kernels, how often each is called, and with which weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import relax
from tvm.ir import GenericConst

import targets
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.entries import EXPAND_ENTRY
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.memory.list_calls import list_calls
from compiler.passes.pipeline import run_pipeline
from compiler.profiling.attribution import names_of
from compiler.support.model_nodes import Step, calls_of
from compiler.support.operation_count import count_operations
from compiler.tuning.measuring.messages import Argument, KernelTask
from schedules.config import Config, ConfigSpace
from schedules.ir.stages import Kernel, dtype_of, kernels_of, shape_of
from schedules.ir.tvm_types import Expr, Function
from schedules.rule import AnyRule, Workload
from schedules.selection.alternatives import Alternative, Choice
from schedules.selection.apply import matching_rule, record_key
from schedules.selection.registry import rules

# Workspaces are intermediate buffers of schedules.
_WITHOUT_SCHEDULES = {"instead-of:apply-schedules": None, "instead-of:lift-workspaces": None}


@dataclass
class Task:
    """One kernel to tune.

    Attributes:
        key: its record key.
        names: names of the kernels in the module that share the key; the first stands for all.
        count: calls in one run of the model.
        nodes: names of the model's nodes that it computes, the main one first.
        tunable: the rule has knobs with more than one config.
        instead_of: the key of the task for which this one would be an alternative; "" for kernels of the untuned
            module.
    """

    key: str
    names: list[str]
    rule: AnyRule
    workload: Any
    space: ConfigSpace
    default: Config
    kernel: KernelTask
    count: int = 0
    nodes: tuple[str, ...] = ()
    tunable: bool = True
    instead_of: str = ""
    operations: int = 0
    nbytes: int = 0


@dataclass
class Extracted:
    """The tasks of a model; `skipped` has the kernels that cannot be measured, with reasons."""

    tasks: list[Task] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add_alternatives(self, other: Extracted, first: Mapping[str, str]) -> None:
        """Add the tasks from another layout of the module that are alternatives to tasks here."""
        known = {task.key: task for task in self.tasks}
        for task in other.tasks:
            replaced = known.get(first.get(task.key, ""))
            if replaced is None or task.key in known:
                continue
            task.instead_of, task.count = replaced.key, replaced.count
            task.names = [f"{replaced.names[0]} by {_alternative_name(task)}"]
            self.tasks.append(task)


def extract_tasks(
    mod: tvm.IRModule, target: targets.Target, options: PassOptions | None = None, *, alternatives: bool = True
) -> Extracted:
    """The distinct tasks of an imported module, after layout and fusion.

    With `alternatives`, also the kernels for the same computation that are not estimated to be the fastest.
    """

    def tasks(choose: Choice) -> Extracted:
        context = PipelineContext(
            target=target, machine=target.machine, options=options or PassOptions(), choose=choose
        )
        result = run_pipeline(mod, context, passes=_WITHOUT_SCHEDULES, until="schedule")
        list_calls.rewrite(result.mod, context)
        return tasks_of(result.mod, target, context.report.calls)

    survey = AlternativeSurvey()
    extracted = tasks(survey)
    while alternatives and survey.advance():
        extracted.add_alternatives(tasks(survey), survey.first)
    return extracted


@dataclass
class AlternativeSurvey:
    """A `Choice` that selects the alternative at one index of the list after the other. `first`: for each alternative's
    key that is not the first of its list, the first one's key."""

    index: int = 0
    first: dict[str, str] = field(default_factory=dict)
    _last: int = 0

    def __call__(self, alternatives: Sequence[Alternative]) -> int:
        self.first |= {alternative.key: alternatives[0].key for alternative in alternatives[1:]}
        self._last = max(self._last, len(alternatives) - 1)
        return min(self.index, len(alternatives) - 1)

    def advance(self) -> bool:
        """Advance to the next index. Returns False if there is none."""
        self.index += 1
        return self.index <= self._last


def tasks_of(
    mod: tvm.IRModule, target: targets.Target, steps: Mapping[str, Sequence[Step]] = MappingProxyType({})
) -> Extracted:
    """The tasks of a module whose kernels are not scheduled yet; `steps`: the report of `list-calls` for it."""
    calls = kernel_calls(mod)
    nbytes = weight_bytes(mod)
    extracted = Extracted()
    tasks: dict[str, Task] = {}
    for variable, function in kernels_of(mod):
        name = str(variable.name_hint)
        kernel = Kernel.of(function)
        match = matching_rule(kernel, target.machine, target.schedule_rules() or rules())
        if match is None:
            continue
        rule, workload = match
        if not kernel.is_static:
            extracted.skipped[name] = "its sizes are known only at run time"
            continue
        key = record_key(rule, workload)
        space = rule.space(workload, target.machine)
        if not space.knobs:
            # Kernels of a rule without knobs can differ even if their workloads are equal.
            key = f"{key}#{name}"
        if key not in tasks:
            constants = calls.constants.get(name, set())
            task = _task(key, rule, workload, kernel, constants, nbytes, target)
            tasks[key] = task
        tasks[key].names.append(name)
        tasks[key].nodes = tuple(dict.fromkeys((*tasks[key].nodes, *names_of(calls_of(name, steps)))))
        tasks[key].count += calls.counts[name]
    extracted.tasks = [task for task in tasks.values() if task.count]
    return extracted


def _task(
    key: str,
    rule: AnyRule,
    workload: Workload,
    kernel: Kernel,
    constants: set[int],
    constant_bytes: int,
    target: targets.Target,
) -> Task:
    space = rule.space(workload, target.machine)
    arguments = tuple(
        Argument(
            tuple(int(size) for size in shape_of(buffer)),
            dtype_of(buffer),
            is_output=any(buffer.same_as(output) for output in kernel.outputs),
            is_constant=position in constants,
        )
        for position, buffer in enumerate(kernel.function.params)
    )
    counted = count_operations(kernel.function)
    operations = int(counted.formula) if counted is not None and counted.formula.isdecimal() else 0
    nbytes = sum(
        int(np.prod(each.shape, dtype=np.int64)) * ELEMENT_TYPES[each.dtype].numpy.itemsize for each in arguments
    )
    return Task(
        key,
        [],
        rule,
        workload,
        space,
        rule.default(workload, target.machine) if space.knobs else Config(),
        KernelTask(key, rule.name, tvm.ir.save_json(kernel.function), arguments, constant_bytes),
        tunable=space.size > 1,
        operations=operations,
        nbytes=nbytes,
    )


def _alternative_name(task: Task) -> str:
    tile = getattr(task.workload, "tile", None)
    return task.rule.name if tile is None else f"{task.rule.name} {tile}x{tile}"


@dataclass
class KernelCalls:
    """Number of calls of each kernel in a run, and its parameters that are weights, by the kernel's name."""

    counts: Counter[str]
    constants: dict[str, set[int]]


def kernel_calls(mod: tvm.IRModule) -> KernelCalls:
    """Kernel calls of a module before its calls are lowered, without those at load time."""
    calls = KernelCalls(Counter(), {})

    def visit(call: Expr) -> None:
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") not in _KERNEL_CALLS:
            return
        name = str(call.args[0].name_hint)
        operands = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
        weights = {position for position, value in enumerate(operands) if isinstance(value, GenericConst)}
        calls.counts[name] += 1
        calls.constants[name] = weights & calls.constants.get(name, weights)

    for function in _run_functions(mod):
        relax.analysis.post_order_visit(function, visit)
    return calls


_KERNEL_CALLS = ("relax.call_tir", "relax.call_tir_inplace")


def weight_bytes(mod: tvm.IRModule) -> int:
    """Total bytes of all distinct weights."""
    seen: dict[int, int] = {}

    def visit(value: Expr) -> None:
        if isinstance(value, GenericConst):
            data = value.value
            elements = int(np.prod([int(size) for size in data.shape], dtype=np.int64))
            seen[hash(value)] = elements * (int(str(data.dtype).strip("abcdefghijklmnopqrstuvwxyz_") or 8) // 8 or 1)

    for function in _run_functions(mod):
        relax.analysis.post_order_visit(function, visit)
    return sum(seen.values())


def _run_functions(mod: tvm.IRModule) -> list[Function]:
    """The functions executed in a run of the model, without those executed once at load."""
    return [
        function
        for variable, function in mod.functions_items()
        if isinstance(function, relax.Function) and variable.name_hint != EXPAND_ENTRY
    ]
