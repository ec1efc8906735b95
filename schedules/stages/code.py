"""Code for one stage: threads outside, vectors inside, whatever its form."""

from __future__ import annotations

from collections.abc import Mapping

from schedules.codegen.nest import Extent, parallel_grid, sequence
from schedules.ir.expression import substitute
from schedules.ir.stages import Stage
from schedules.ir.tir import Expr, Stmt, Var
from schedules.machine import Machine
from schedules.stages.nest_code import elementwise_code, interleaved_code, plain_code
from schedules.stages.plan import NestPlan, StagePlan, plan_stage
from schedules.stages.reduction_code import reduction_code
from schedules.stages.transpose_code import transpose_code


def stage_code(stage: Stage, machine: Machine, *, parallel: bool = True) -> Stmt:
    """The stage as a statement; `parallel=False` when it runs inside a parallel loop already."""
    return planned_code(plan_stage(stage, machine, threads=None if parallel else False), machine)


def planned_code(plan: StagePlan, machine: Machine) -> Stmt:
    """A planned stage as a statement, of new variables at each call."""
    if plan.shared is None:
        return _nests(plan, machine, {})
    axis = plan.shared
    one = [Extent(axis.name, axis.extent, str(axis.var.ty))]
    return parallel_grid(one, lambda values: _nests(plan, machine, {axis.var: values[0]}), machine, parallel=True)


def _nests(plan: StagePlan, machine: Machine, values: Mapping[Var, Expr]) -> Stmt:
    return substitute(sequence([_nest_code(piece, machine) for piece in plan.nests]), values)


def _nest_code(plan: NestPlan, machine: Machine) -> Stmt:
    if plan.transpose is not None:
        threads, cycles = plan.threads, plan.cycles
        return transpose_code(plan.nest, plan.transpose, machine, plan.lanes, threads=threads, cycles=cycles)
    if plan.axis is None:
        return plain_code(plan, machine)
    if plan.is_interleaved:
        return interleaved_code(plan, machine)
    return elementwise_code(plan, machine) if plan.reduction is None else reduction_code(plan, machine)
