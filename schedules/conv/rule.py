"""The base of the rules for kernels in the blocked layout."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol, TypeVar

from schedules.config import Config
from schedules.conv.workload import WindowWorkload
from schedules.ir.stages import Kernel
from schedules.ir.tir import PrimFunc, Stmt
from schedules.machine import Machine
from schedules.rule import CpuRule, Priority
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

W = TypeVar("W", bound=WindowWorkload)


class Nest(Protocol):
    """The loop nest of a kernel."""

    def build(self, machine: Machine) -> Stmt:
        """Write the loops."""


class BlockedRule(CpuRule[W]):
    """Serves the kernels whose anchor stages are annotated with the rule's name and the workload."""

    priority: ClassVar[int] = Priority.BLOCKED
    anchors: ClassVar[frozenset[int]] = frozenset({1})
    """Allowed numbers of stages of the anchor."""
    keeps_loops: ClassVar[bool] = False
    """True if LLVM must not transform the loops of kernels of dynamic sizes."""

    @abstractmethod
    def nest(self, fused: FusedKernel, workload: W, config: Config, machine: Machine) -> Nest:
        """The loop nest of a kernel."""

    def serves(self, workload: W, machine: Machine) -> bool:
        """True if the machine has the instructions for a kernel."""
        return True

    def match(self, kernel: Kernel, machine: Machine) -> W | None:
        stages = anchor_stages(kernel, self.name)
        if len(stages) not in self.anchors:
            return None
        workload: W = WindowWorkload.from_annotation(stages[0].annotations)  # type: ignore[assignment]
        return workload if self.serves(workload, machine) else None

    def apply(self, kernel: Kernel, workload: W, config: Config, machine: Machine) -> PrimFunc:
        fused = FusedKernel(kernel, anchor_stages(kernel, self.name))
        body = self.nest(fused, workload, config, machine).build(machine)
        return fused.function(body, machine, keep_loops=self.keeps_loops and workload.is_open)
