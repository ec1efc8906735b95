"""Lower bounds of kernel times on a device, from its peak rates: two kernels, one that only multiplies and adds and one
that only reads, are measured in the same way as any trial.

The lower bound of a kernel is the larger of the times for its multiply-adds and for its bytes from beyond the L2 cache
at these rates (the roofline model, Williams et al. 2009). It is only known for float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.tuning.measuring.messages import AS_IT_IS, Argument, KernelTask
from compiler.tuning.measuring.pool import CandidatePool, Trial
from schedules.codegen.nest import allocate_tile, lanes_of, load, parallel, repeat, sequence, store
from schedules.config import Config
from schedules.conv.tiling import accumulators
from schedules.ir.tir import s_tir, tirx
from schedules.machine import Machine

if TYPE_CHECKING:
    from compiler.tuning.tasks import Task

_STEPS = 20_000
_TASKS_PER_CORE = 4
_MAX_BYTES = 16 << 20
_TYPE = "float32"


@dataclass(frozen=True)
class Peaks:
    """Peak rates of all cores of a device together; zero if unknown.

    Attributes:
        operations: float32 multiplications and additions per second. nbytes: bytes per second read from beyond the
        L2 cache.
    """

    operations: float = 0.0
    nbytes: float = 0.0


def measure_peaks(pool: CandidatePool, machine: Machine) -> tuple[Peaks, str]:
    """The peaks of the first free device, and an error message ("" if there is none)."""
    if pool.memory != "cpu":
        return Peaks(), ""  # the kernels below are for processors; without peaks, there are no lower bounds
    arithmetic, operations = _arithmetic(machine)
    reading, nbytes = _reading(machine)
    tasks = [arithmetic, reading]
    for task in tasks:
        pool.define(task)
    errors = pool.prepare([task.key for task in tasks])
    if errors:
        return Peaks(), next(iter(errors.values()))
    outcomes = pool.trials([Trial(task.key, Config()) for task in tasks], lambda _trial, _outcome: None)
    failed = [outcome for outcome in outcomes if outcome.seconds is None]
    if failed:
        return Peaks(), f"{failed[0].status}: {failed[0].note}"
    first, second = (outcome.seconds or 1.0 for outcome in outcomes)
    return Peaks(operations / first, nbytes / second), ""


def min_seconds(task: Task, machine: Machine, peaks: Peaks) -> float:
    """Seconds that no config of the task can beat on a device with these peaks; 0 if unknown."""
    if getattr(task.workload, "dtype", "") != _TYPE or not peaks.operations:
        return 0.0
    least = task.rule.least_operations(task.workload)
    operations = task.operations if least is None else least
    return max(operations / peaks.operations, _far_bytes(task.kernel, machine) / peaks.nbytes)


def _far_bytes(kernel: KernelTask, machine: Machine) -> int:
    """Bytes from beyond the L2 cache: weights, if the model's do not fit in it, and any other data that does not."""
    near = machine.l2_bytes * machine.cores
    weights = sum(_nbytes(each) for each in kernel.arguments if each.is_constant)
    others = sum(_nbytes(each) for each in kernel.arguments if not each.is_constant)
    return (weights if kernel.constant_bytes > near else 0) + max(0, others - near)


def _nbytes(argument: Argument) -> int:
    return int(np.prod(argument.shape, dtype=np.int64)) * ELEMENT_TYPES[argument.dtype].numpy.itemsize


def _arithmetic(machine: Machine) -> tuple[KernelTask, int]:
    """A kernel of sums in registers, each a chain of multiply-adds; the task and its operations."""
    lanes, tasks = machine.lanes(_TYPE), _TASKS_PER_CORE * machine.cores
    count = min(accumulators(machine), 2 * machine.fma_ports * machine.fma_latency + 2)
    every = lanes_of(0, lanes)
    factors, result = tirx.decl_buffer((2, lanes), _TYPE, "factors"), tirx.decl_buffer((tasks, lanes), _TYPE, "result")

    def task(number: object) -> Any:
        sums, allocations = allocate_tile("sums", (count, lanes), _TYPE)
        start = [store(sums, tirx.Broadcast(tirx.const(float(i), _TYPE), lanes), i, every) for i in range(count)]

        def step(_: object) -> Any:
            return sequence(
                [
                    store(sums, load(sums, i, every) * load(factors, 0, every) + load(factors, 1, every), i, every)
                    for i in range(count)
                ]
            )

        total = load(sums, 0, every)
        for i in range(1, count):
            total = total + load(sums, i, every)
        return sequence(allocations, start, repeat("step", _STEPS, step), store(result, total, number, every))

    arguments = (Argument((2, lanes), _TYPE), Argument((tasks, lanes), _TYPE, is_output=True))
    kernel = _kernel("peak-arithmetic", [factors, result], parallel("task", tasks, task), arguments)
    return kernel, 2 * tasks * count * lanes * _STEPS


def _reading(machine: Machine) -> tuple[KernelTask, int]:
    """A kernel that sums an array larger than the L2 caches; the task and its bytes."""
    lanes, tasks, count = machine.lanes(_TYPE), _TASKS_PER_CORE * machine.cores, 8
    wanted = max(2 * machine.cores * machine.l2_bytes, min(machine.l3_bytes // 2, _MAX_BYTES))
    steps = max(1, wanted // (4 * lanes * tasks * count))
    every = lanes_of(0, lanes)
    data = tirx.decl_buffer((tasks, steps, count, lanes), _TYPE, "data")
    result = tirx.decl_buffer((tasks, lanes), _TYPE, "result")

    def task(number: object) -> Any:
        sums, allocations = allocate_tile("sums", (count, lanes), _TYPE)
        start = [store(sums, tirx.Broadcast(tirx.const(0.0, _TYPE), lanes), i, every) for i in range(count)]

        def step(k: object) -> Any:
            added = [load(sums, i, every) + load(data, number, k, i, every) for i in range(count)]
            return sequence([store(sums, each, i, every) for i, each in enumerate(added)])

        total = load(sums, 0, every)
        for i in range(1, count):
            total = total + load(sums, i, every)
        return sequence(allocations, start, repeat("step", steps, step), store(result, total, number, every))

    shape = (tasks, steps, count, lanes)
    arguments = (Argument(shape, _TYPE), Argument((tasks, lanes), _TYPE, is_output=True))
    kernel = _kernel("peak-reading", [data, result], parallel("task", tasks, task), arguments)
    return kernel, 4 * tasks * steps * count * lanes


def _kernel(name: str, buffers: list[Any], body: object, arguments: tuple[Argument, ...]) -> KernelTask:
    block = s_tir.SBlock([], [], [], "root", body)
    function = tirx.PrimFunc(buffers, s_tir.SBlockRealize([], True, block))
    return KernelTask(f"{AS_IT_IS}/{name}", AS_IT_IS, tvm.ir.save_json(function), arguments)
