"""Recurrent layers on a processor: selects one of the two kernels, and the axis that threads share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from schedules.codegen.nest import build_function
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.gpu.machine import GpuMachine
from schedules.ir.expression import constant_int
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel, shape_of
from schedules.ir.tir import Expr, Index, PrimFunc, tirx
from schedules.machine import Machine
from schedules.recurrence.description import ATTRIBUTE, Recurrence, parse
from schedules.recurrence.writers import DIRECTIONS, SERIAL, TEAM, UNITS, by_samples, lockstep
from schedules.rule import CpuRule, Priority, Workload
from schedules.task_split import SplitAxis, Work, busiest_share, estimated_cycles, pays_at_run_time

SAMPLES = "samples"
_TYPICAL_STEPS = 16  # assumed length of a dynamic sequence
# Multiplications of a kernel from which threads pay off. Integers are multiplied four times as fast.
_WORTH_THREADS = 2**20
_INTEGER_SPEED = 4
_WEIGHT_BYTES = 4  # of float32
_WORTH_STARTING = 0.7  # relative to the time of a serial step: threads started for each step are less balanced


@dataclass(frozen=True)
class RecurrentWorkload(Workload):
    """Computation of the kernel, as JSON, and its sizes (0 where dynamic)."""

    description: str
    steps: int
    samples: int


class Recurrent(CpuRule[RecurrentWorkload]):
    """Serves the kernels that carry a description of a recurrent layer."""

    name: ClassVar[str] = "recurrent"
    priority: ClassVar[int] = Priority.BLOCKED
    reschedules: ClassVar[bool] = True

    def match(self, kernel: Kernel, machine: Machine) -> RecurrentWorkload | None:
        text = (kernel.function.attrs or {}).get(ATTRIBUTE)
        if text is None or isinstance(machine, GpuMachine):
            return None
        recurrence = parse(str(text))
        buffers = [each for each in kernel.function.params if tirx.is_buffer_var(each)]
        sizes = [constant_int(size) for size in buffers[recurrence.operands.index("x")].shape[:2]]
        steps, samples = (size if isinstance(size, int) else 0 for size in sizes)
        return RecurrentWorkload(str(text), steps, samples)

    def apply(self, kernel: Kernel, workload: RecurrentWorkload, config: Config, machine: Machine) -> PrimFunc:
        recurrence = parse(workload.description)
        buffers = [each for each in kernel.function.params if tirx.is_buffer_var(each)]
        count = len(recurrence.operands)
        ins, outs = buffers[:count], buffers[count:]
        if len(outs) != 1 + len(recurrence.cell.states):
            raise NotScheduledError("its parameters are not those that its description names")
        way = way_to_run(recurrence, workload.steps, workload.samples, machine)
        if way == SAMPLES:
            steps, samples = shape_of(buffers[recurrence.operands.index("x")])[:2]
            body = by_samples(recurrence, ins, outs, shared=_samples_pay(recurrence, steps * samples, machine))
        else:
            body = lockstep(recurrence, ins, outs, way)
        return build_function(kernel, [body], [])


def way_to_run(recurrence: Recurrence, steps: int, samples: int, machine: Machine) -> str:
    """The axis that threads share: independent samples, the directions, or the hidden units of each step. With SERIAL,
    one thread runs all samples step by step and reads each weight once per step. Sizes are 0 if dynamic."""
    plain = _without_units(recurrence, steps, samples, machine)
    if machine.cores == 1:
        return plain
    shared = _step_in_units(recurrence, samples, machine)
    length = steps or _TYPICAL_STEPS
    return UNITS if shared < _WORTH_STARTING * _step(recurrence, length, samples or 1, machine, plain) else plain


def _without_units(recurrence: Recurrence, steps: int, samples: int, machine: Machine) -> str:
    """The best choice among those that start threads only once."""
    products = recurrence.cell.gates * recurrence.hidden**2
    step = products // (_INTEGER_SPEED if recurrence.quantized else 1)
    stays_in_cache = _WEIGHT_BYTES * products <= machine.l2_bytes // 2
    # All samples of a quantized step have one scale.
    alone = SERIAL if recurrence.quantized or (machine.cores == 1 and not stays_in_cache) else SAMPLES
    if machine.cores == 1 or step * (steps or _TYPICAL_STEPS) * recurrence.directions < _WORTH_THREADS:
        return alone
    return DIRECTIONS if recurrence.directions >= machine.cores else alone


def _work(recurrence: Recurrence, samples: int, axis: str) -> Work:
    """The matmuls of one step, for all directions."""
    weights = recurrence.cell.gates * recurrence.hidden**2 * recurrence.directions
    bytes_ = weights * (1 if recurrence.quantized else _WEIGHT_BYTES)
    vectors = weights / recurrence.lanes / (_INTEGER_SPEED if recurrence.quantized else 1)
    return Work({axis: 0.0}, cycles=vectors * max(2.0, samples / 2), bytes=float(bytes_))


def _step_in_units(recurrence: Recurrence, samples: int, machine: Machine) -> float:
    """Cycles of a step whose hidden units are shared by threads, which are started for each of its stages."""
    axes = [SplitAxis("units", recurrence.blocks * recurrence.directions, max_steps=1)]
    sizes, stages = {"units": 1}, len(recurrence.stages[0])
    work = _work(recurrence, samples or 1, "units")
    own = replace(work, cycles=work.cycles / stages, bytes=work.bytes / stages)
    return stages * estimated_cycles(axes, [own], sizes, machine, machine.cores)


def _step(recurrence: Recurrence, steps: int, samples: int, machine: Machine, way: str) -> float:
    """Cycles of a step of another choice, without the one-time start of the threads."""
    alone = estimated_cycles([SplitAxis("all", 1)], [_work(recurrence, samples, "all")], {"all": 1}, machine, threads=1)
    tasks = 1
    if way == DIRECTIONS:
        tasks = recurrence.directions
    elif way == SAMPLES and _samples_pay(recurrence, steps * samples, machine):
        tasks = recurrence.directions * (samples if recurrence.has_lengths else ceil_div(samples, TEAM))
    return alone * busiest_share(tasks, machine.cores)


def _samples_pay(recurrence: Recurrence, amount: Index, machine: Machine) -> bool | Expr:
    """True if threads pay off for this many steps of a sample."""
    return pays_at_run_time(amount, _work(recurrence, TEAM, "all").cycles / TEAM, machine)
