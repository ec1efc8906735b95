"""The context of a compilation that passes read, and the report that they fill in."""

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
    """The options of `compile` that passes read.

    Attributes:
        precision: "float32", "bf16" or "float16": what operands of convolutions and of products by weights round to.
        checks: what the checks of sizes in the module are for: the one that binds `check_N_` is for `checks[N]`.
        states: of each state, the position of its parameter in `main` and of its new value in the results.
        nodes: the model's nodes by the variables that are named after them.
    """

    precision: str = "float32"
    checks: tuple[str, ...] = ()
    states: tuple[tuple[int, int], ...] = ()
    nodes: Mapping[str, tuple[ModelNode, ...]] = field(default_factory=dict)


@dataclass
class CompilationReport:
    """Report of passes beside the module.

    Attributes:
        schedules: of `apply-schedules`: the rule and config of each kernel; None before it ran.
        operations: of `count-operations`: the arithmetic of each kernel, by name; kernels whose work depends on data
            are not in it.
        gathered: of `count-operations`: the arguments of each kernel that it only gathers from, where there are any.
        memory: of `plan-memory`: bytes of each function that allocates, by its name, then "peak", "without_reuse",
            "lower_bound", "in_place" and "unplanned".
        dynamic_memory: of `plan-memory`: bytes of each function's tensors of unbounded size, as a formula of symbols;
            "" where there is none.
        calls: of `list-calls`: the calls of each function in order, with the model's nodes that they compute.
        outputs: of `list-calls`: how many results the kernels with several have.
        partition: of a target's partition passes: "claimed" and "refused", each a list; None for a processor.
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
        """Rule and config of each kernel; none where nothing was scheduled."""
        return () if self.schedules is None else self.schedules.kernels


@dataclass
class PipelineContext:
    """The compilation a pass takes part in.

    Attributes:
        target: None for TVM's plain CPU.
        machine: what kernels are scheduled for; None: nothing is scheduled.
        options: what the caller asks of the passes.
        shape_bounds: upper bound of a symbolic dimension, by its name; used in planning memory.
        configs: configs of kernels from tuning records, handed to the schedule rules as they are.
        choose: which algorithm a convolution takes; the one estimated to be fastest when None.
        settings: what a tuning record chose for the model as a whole, for the target's partition passes.
        parameters: filled by `lift-parameters`: the trailing parameters of `main`, in order, by name.
        expansions: which constants can be stored in a smaller form; those that are come last in `parameters`.
        report: what passes report about the module.
        tracker: which of the model's nodes the variables stand for.
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
        """TVM's description of the target, entered while passes run that ask for the current target."""
        return nullcontext() if self.target is None else self.target.tvm_target()
