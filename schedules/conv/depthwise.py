"""Depthwise convolution in the blocked layout: a register tile of pixels, one channel block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedules.codegen.nest import load, splat
from schedules.config import Config, ConfigSpace
from schedules.conv.compute import DEPTHWISE
from schedules.conv.estimates import window_estimate
from schedules.conv.window import WindowNest, window_default, window_space
from schedules.conv.workload import DepthwiseDotWorkload, WindowWorkload
from schedules.estimate import Estimate
from schedules.instructions.products.operation import DOT_WORDS
from schedules.ir.stages import Kernel
from schedules.ir.tir import Expr, PrimFunc, Stmt
from schedules.ir.widening import low_halves
from schedules.machine import Machine
from schedules.rule import CpuRule, Priority
from schedules.stages.fused_kernel import FusedKernel, anchor_stages


class Depthwise(CpuRule[WindowWorkload]):
    """The knobs are those of `window.window_space`."""

    name: ClassVar[str] = "conv-depthwise"
    priority: ClassVar[int] = Priority.BLOCKED
    cut_knobs: ClassVar[frozenset[str]] = frozenset({"splits"})

    def match(self, kernel: Kernel, machine: Machine) -> WindowWorkload | None:
        stages = anchor_stages(kernel, DEPTHWISE)
        if len(stages) != 1:
            return None
        return WindowWorkload.from_annotation(stages[0].annotations)

    def space(self, workload: WindowWorkload, machine: Machine) -> ConfigSpace:
        return window_space(workload, machine)

    def default(self, workload: WindowWorkload, machine: Machine) -> Config:
        return window_default(workload, machine)

    def estimate(self, workload: WindowWorkload, config: Config, machine: Machine) -> Estimate | None:
        return window_estimate(workload, config, machine)

    def apply(self, kernel: Kernel, workload: WindowWorkload, config: Config, machine: Machine) -> PrimFunc:
        fused = FusedKernel(kernel, anchor_stages(kernel, DEPTHWISE))
        if not isinstance(workload, DepthwiseDotWorkload):
            return fused.function(DepthwiseNest(fused, workload, config).build(machine), machine)
        return fused.function(DepthwiseDotNest(fused, workload, config).build(machine), machine)


class DepthwiseNest(WindowNest):
    """Multiply-adds with one weight vector a tap."""

    def __init__(self, fused: FusedKernel, work: WindowWorkload, config: Config) -> None:
        super().__init__(fused, work, config)
        self.weight = fused.operand(fused.anchors[0], work.rank + 2)

    def start_value(self) -> float:
        return 0.0

    def row_operands(self, block: Expr, outer: Sequence[int]) -> tuple[list[Expr], list[Stmt]]:
        named = [
            self.named(self.weight_of(load(self.weight, block, *outer, tap, self.all_lanes)))
            for tap in range(self.work.kernel[-1])
        ]
        return [var for var, _ in named], [binding for _, binding in named]

    def weight_of(self, stored: Expr) -> Expr:
        """A weight vector, in the type that the taps use."""
        return stored

    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        return total + value * operand


class DepthwiseDotNest(DepthwiseNest):
    """Depthwise convolution of 8-bit integers: 16-bit products accumulated in int32."""

    work: DepthwiseDotWorkload

    def read(self, stored: Expr) -> Expr:
        value = super().read(stored)
        return value - splat(self.work.fill, self.work.dtype, self.lanes) if self.work.fill else value

    def weight_of(self, stored: Expr) -> Expr:
        return low_halves(stored)

    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        return DOT_WORDS(total, value, operand)
