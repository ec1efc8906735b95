"""The context of a compilation as passes read it, and the report they fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compiler.passes.rewriting.expansion import Expansions
from compiler.passes.rewriting.node_tracker import NodeTracker
from compiler.support.model_nodes import ModelNode, Step
from compiler.support.operation_count import OperationCount
from schedules.machine import Machine
from targets.measure import Setting
from targets.target import Target

if TYPE_CHECKING:
    from schedules.selection.alternatives import Choice
    from schedules.selection.apply import ConfigSource, KernelReport, ScheduleReport


@dataclass(frozen=True)
class PassOptions:
    """Options of `compile` that passes read.

    Attributes:
        precision: "float32", "bf16" or "float16": the rounding of operands of convolutions and of matmuls by weights.
        checks: purpose of the module's size checks: the one that binds `check_N_` is for `checks[N]`.
        states: for each state, the positions of its parameter in `main` and of its new value in the results.
        nodes: the model's nodes, by the variables named after them.
    """

    precision: str = "float32"
    checks: tuple[str, ...] = ()
    states: tuple[tuple[int, int], ...] = ()
    nodes: Mapping[str, tuple[ModelNode, ...]] = field(default_factory=dict)


@dataclass
class CompilationReport:
    """Results that passes report in addition to the module.

    Attributes:
        schedules: from `apply-schedules`: the rule and config of each kernel; None before it ran.
        operations: from `count-operations`: the arithmetic of each kernel, by name, except kernels with data-dependent
            work.
        gathered: from `count-operations`: the arguments of each kernel that it only gathers from, if any.
        memory: from `plan-memory`: bytes of each function that allocates, by its name, then "peak", "without_reuse",
            "lower_bound", "in_place" and "unplanned".
        dynamic_memory: from `plan-memory`: bytes of each function's tensors of unbounded size, as a symbolic formula;
            "" if there are none.
        calls: from `list-calls`: the calls of each function in order, with the model nodes that they compute.
        outputs: from `list-calls`: the number of results of multi-result kernels.
        partition: from a target's partition passes: "claimed" and "refused", each a list; None for a CPU.
    """

    schedules: ScheduleReport | None = None
    operations: dict[str, OperationCount] = field(default_factory=dict)
    gathered: dict[str, frozenset[int]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    dynamic_memory: dict[str, str] = field(default_factory=dict)
    partition: Mapping[str, object] | None = None
    calls: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)

    @property
    def kernels(self) -> Sequence[KernelReport]:
        """Return the rule and config of each kernel; empty if nothing was scheduled."""
        return () if self.schedules is None else self.schedules.kernels


@dataclass
class PipelineContext:
    """State shared by the passes of one compilation.

    Attributes:
        target: None for TVM's plain CPU.
        machine: the machine that kernels are scheduled for; None: nothing is scheduled.
        options: the caller's options.
        shape_bounds: upper bounds of symbolic dimensions, by name; used to plan memory.
        configs: kernel configs from tuning records, passed unchanged to the schedule rules.
        choose: the convolution algorithm; None chooses by estimated time.
        settings: model-wide choices of a tuning record, for the target's partition passes.
        parameters: filled by `lift-parameters`: the trailing parameters of `main`, in order, by name.
        expansions: constants that can be stored in a smaller form; those stored so are last in `parameters`.
        report: the passes' report about the module.
        tracker: maps variables to the model's nodes.
    """

    target: Target | None = None
    machine: Machine | None = None
    options: PassOptions = field(default_factory=PassOptions)
    shape_bounds: Mapping[str, int] = field(default_factory=dict)
    configs: ConfigSource | None = None
    choose: Choice | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    parameters: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    expansions: Expansions = field(default_factory=Expansions)
    report: CompilationReport = field(default_factory=CompilationReport)
    tracker: NodeTracker = field(init=False)

    def __post_init__(self) -> None:
        self.tracker = NodeTracker(self.options.nodes)

    def tvm_target(self) -> AbstractContextManager[object]:
        """Enter TVM's description of the target, for passes that query the current target."""
        return nullcontext() if self.target is None else self.target.tvm_target()
