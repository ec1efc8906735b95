"""The base classes of schedule rules, and how to add one.

A rule schedules one family of kernels. Put a class derived from `CpuRule` of its workload's type in its own module in
this package (any module here is searched), or, in another package, register the class as an entry point of the group
`tensorwright.schedules`. It answers four questions:

1. `match(kernel, machine)`: does this rule serve the kernel? Return a workload, the few numbers that decide how to
   schedule it (a frozen dataclass of ints, strings and bools: it is the key of tuning records), or None.
2. `space(workload, machine)`: which knobs are there?
3. `default(workload, machine)`: their values computed from the machine. An untuned build uses these.
4. `apply(kernel, workload, config, machine)`: the new PrimFunc, with the same parameters, attributes and semantics. A
   rule that transforms TVM's schedule gets one from `schedules.selection.apply.kernel_schedule(kernel)`.

and optionally a fifth, `estimate(workload, config, machine)`: the expected cost of a config. The tuner ranks by it
until it has measured. Rules for processors derive from `CpuRule`, those for GPUs from `schedules.gpu.rule.GpuRule`.

Rules are tried by descending `priority` (see `Priority`), those of equal priority ordered by name. Increase `version`
when the meaning of a knob changes: records of older versions are then no longer used. Raise `NotScheduledError` from
`apply` for a kernel that the rule does not handle after all: the next rule is tried. A rule must never change results
beyond reassociation of floating-point sums.

`kernel` is a `schedules.ir.stages.Kernel`: the PrimFunc split into stages. Kernels made of plain loops are best emitted
directly with the helpers of `schedules.codegen`, which handle tails and vectors; rules are free not to use them.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from schedules.config import Config, ConfigSpace
from schedules.machine import Machine

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from schedules.estimate import Estimate
    from schedules.ir.stages import Kernel


@dataclasses.dataclass(frozen=True)
class Workload:
    """Base of workloads: the parameters that decide how a kernel is scheduled. Fields are ints, strings, bools and
    tuples of them."""

    def key(self) -> str:
        """A canonical text, equal for equal workloads; tuning records are keyed by it."""
        fields = dataclasses.asdict(self)
        return f"{type(self).__name__}{json.dumps(fields, sort_keys=True, separators=(',', ':'))}"


WorkloadT = TypeVar("WorkloadT", bound=Workload)


class Priority(enum.IntEnum):
    """The order in which rules are tried, highest first."""

    FALLBACK = 0
    GENERAL = 10
    """Any kernel whose loops have a certain form."""
    MATMUL = 40
    """Matmuls with unpacked operands."""
    USUAL = 50
    """The default."""
    PACKED = 60
    """Kernels that a pass has written for the rule: packed matmuls, attention."""
    PACKED_MATRIX = 61
    """Packed matmuls by matrix instructions, if the machine has them."""
    BLOCKED = 90
    """Kernels in the blocked layout: convolutions, pooling; recurrent layers."""
    BLOCKED_DOT = 91
    """The same with dot products of narrow operands, or with sparse weights."""
    BLOCKED_MATRIX = 92
    """The same with matrix instructions."""


class GpuPriority(enum.IntEnum):
    """`Priority` of the rules for GPUs."""

    FALLBACK = 0
    ROWS = 60
    REDUCTION = 70
    VECTOR_BY_MATRIX = 75
    MATMUL = 80
    LONG_SUMS = 82
    """Matmuls with few results; tried after short sums, which need no joining."""
    SHORT_SUMS = 85
    PRODUCT = 90
    TENSOR_CORES = 95


class ScheduleRule(ABC, Generic[WorkloadT]):
    """The schedule of one operator family, generic in its workload type. The module docstring says how to write one."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    priority: ClassVar[int] = Priority.USUAL
    reschedules: ClassVar[bool] = False
    """True if it also serves kernels that are marked as scheduled: those were written for a processor."""
    may_decline: ClassVar[bool] = False
    """True if `apply` often raises NotScheduledError for kernels that `match` accepted."""

    cut_knobs: ClassVar[frozenset[str]] = frozenset()
    """Knobs that only bound how the work is split, which `schedules.task_split` decides for the machine's cores:
    records that beat a default are also used for one that differs only in these."""

    @abstractmethod
    def match(self, kernel: Kernel, machine: Machine) -> WorkloadT | None:
        """The workload if this rule serves the kernel, otherwise None. Must be cheap, and must not raise: any exception
        becomes a RuleError with the names of the rule and the kernel."""

    def space(self, workload: WorkloadT, machine: Machine) -> ConfigSpace:
        """The knobs and their values; no knobs unless overridden."""
        return ConfigSpace()

    def default(self, workload: WorkloadT, machine: Machine) -> Config:
        """The knobs' values computed from the machine, without measuring; always inside `space`."""
        return Config()

    def estimate(self, workload: WorkloadT, config: Config, machine: Machine) -> Estimate | None:
        """The estimated cost of a config; None if there is no estimate."""
        return None

    def least_operations(self, workload: WorkloadT) -> int | None:
        """Arithmetic operations that every config performs; None: those of the kernel as written."""
        return None

    @abstractmethod
    def apply(self, kernel: Kernel, workload: WorkloadT, config: Config, machine: Machine) -> PrimFunc:
        """The PrimFunc that replaces the kernel, with the same parameters, attributes and semantics."""

    def same_kernel(self, config: Mapping[str, object], other: Mapping[str, object]) -> bool:
        """True if two configs differ at most in `cut_knobs`."""
        every = (set(config) | set(other)) - self.cut_knobs
        return all(config.get(name) == other.get(name) for name in every)

    def finish(self, function: PrimFunc, machine: Machine) -> PrimFunc:
        """The final passes over a scheduled kernel; those for processors unless overridden."""
        from schedules.instructions.finish import finish

        return finish(function, machine)


AnyRule: TypeAlias = ScheduleRule[Any]
"""Any rule, whatever its type of workload."""


class CpuRule(ScheduleRule[WorkloadT]):
    """A rule for processors."""
