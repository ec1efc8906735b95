"""How to add a schedule rule.

A rule knows how to run one family of kernels fast. Put a class derived from `ScheduleRule` in a module of its own in
this package (any module here is searched), or, in another package, name the class by an entry point of the group
`tensorwright.schedules`. It answers four questions:

1. `match(kernel, machine)`: is this kernel mine? Answer with a workload, the few numbers that decide how to schedule it
   (a frozen dataclass of ints, strings and bools: it is the key of tuning records), or None.
2. `space(workload, machine)`: which knobs are there?
3. `default(workload, machine)`: their values computed from the machine. This is what an untuned build runs.
4. `apply(kernel, workload, config, machine)`: the new PrimFunc, of the same parameters, attributes and meaning. A
   rule that transforms TVM's schedule gets one from `schedules.selection.apply.kernel_schedule(kernel)`.

Rules are tried by falling `priority`; those of `schedules.stages.rules`, which serve every kernel of a certain form,
have 10, the fallback 0. Increase `version` when the meaning of a knob changes: records of older versions are then no
longer used. Raise `NotScheduledError` from `apply` for a kernel that the rule does not handle after all: the next rule
takes it. A rule must never change numbers beyond reassociation of floating-point sums.

`kernel` is a `schedules.ir.stages.Kernel`: the PrimFunc taken apart into stages. Kernels built of plain loops are best
emitted directly with the helpers of `schedules.codegen`, which handle tails and vectors; no rule has to use them.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from schedules.config import Config, ConfigSpace
from schedules.machine import Machine

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from schedules.ir.stages import Kernel


@dataclasses.dataclass(frozen=True)
class Workload:
    """Base of workloads: what decides how a kernel is scheduled. Fields are ints, strings, bools and
    tuples of them."""

    def key(self) -> str:
        """A canonical text, equal for equal workloads; tuning records are keyed by it."""
        fields = dataclasses.asdict(self)
        return f"{type(self).__name__}{json.dumps(fields, sort_keys=True, separators=(',', ':'))}"


class ScheduleRule(ABC):
    """One operator family's schedule. See the module's docstring for how to write one."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    priority: ClassVar[int] = 50
    reschedules: ClassVar[bool] = False
    """Whether it also takes kernels that say they are scheduled: those were written for a processor."""

    @abstractmethod
    def match(self, kernel: Kernel, machine: Machine) -> Any | None:
        """The workload when this rule serves the kernel, else None. Must be cheap and must not raise."""

    def space(self, workload: Any, machine: Machine) -> ConfigSpace:
        """The knobs and their values; no knobs unless overridden."""
        return ConfigSpace()

    def default(self, workload: Any, machine: Machine) -> Config:
        """The knobs' values computed from the machine, without measuring; always inside `space`."""
        return Config()

    @abstractmethod
    def apply(self, kernel: Kernel, workload: Any, config: Config, machine: Machine) -> PrimFunc:
        """The PrimFunc that takes the kernel's place, with the same parameters, attributes and meaning."""

    def finish(self, function: PrimFunc, machine: Machine) -> PrimFunc:
        """What a scheduled kernel goes through last; for processors unless overridden."""
        from schedules.instructions.finish import finish

        return finish(function, machine)
