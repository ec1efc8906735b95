"""Measurer of GPU kernels without a device: nvcc's report, and a model of the processor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from schedules.gpu.machine import GpuMachine
from targets.cuda.nvcc import KernelResources, Nvcc, find_nvcc
from targets.cuda.performance import program
from targets.cuda.performance.execution import BlockRun, Demand, Launch
from targets.cuda.performance.program import RESOURCES, SHARED_BY_PARTITIONS, Kernel, program_of
from targets.cuda.performance.throughput import PARTITIONS, Multiprocessor, Occupancy, multiprocessor, occupancy
from targets.errors import TargetError
from targets.measure import Estimate, MeasureKind, Measurer, ScheduledKernel

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer, Expr, PrimFunc, Stmt

MODEL_VERSION = 1
"""Increment when the estimate of the same kernel changes."""
_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class CudaMeasurer(Measurer):
    """Seconds of a kernel by the model in this package.

    `margin`: of 96 pairs of published kernels whose estimates differ by more than this, 94 are in the predicted order
    (docs/cuda.md).
    """

    machine: GpuMachine
    kind: MeasureKind = "modelled"
    margin: float = 0.25

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"nvcc model sm_{self.machine.compute_capability}"

    def version(self) -> str:
        return f"nvcc {_version_of(find_nvcc())}, model {MODEL_VERSION}"

    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        module = kernel.build()
        launches = kernel_launches(kernel.function)
        source = str(module.imports[0].inspect_source("cuda"))
        estimates = self._launches(source, launches)
        seconds = sum(each.seconds for each in estimates)
        from_memory = self._bytes_from_memory(kernel) / (1e9 * self.machine.memory_gb_s)
        return Estimate(max(seconds, from_memory), _parts(estimates, from_memory))

    def _launches(self, source: str, launches: list[Launch]) -> list[LaunchEstimate]:
        text, resources = find_nvcc().assembled(source, self.machine.compute_capability)
        kernels = {each.name: each for each in program.parse(text)}
        by_kernel = {each.kernel: each for each in resources}
        # TVM names launches after their function: name_kernel, name_kernel_1, ...
        names = sorted(kernels, key=lambda name: (len(name), name))
        if len(names) != len(launches) or set(names) != set(by_kernel):
            raise TargetError(
                f"{len(launches)} launches of a kernel, but nvcc reports on {len(by_kernel)} of {len(names)}",
                "time it on a device",
            )
        return [
            estimate_launch(kernels[name], by_kernel[name], launch, device_of(self.machine))
            for name, launch in zip(names, launches, strict=True)
        ]

    def _bytes_from_memory(self, kernel: ScheduledKernel) -> int:
        """Bytes that are not in the L2 cache when the kernel is called as part of a model, or do not stay there."""
        weights, activations = 0, 0
        for index, buffer in enumerate(kernel.function.params):
            nbytes = _nbytes(buffer)
            weights += nbytes if index in kernel.constants else 0
            activations += 0 if index in kernel.constants else nbytes
        cache_bytes = self.machine.device_l2_bytes
        return weights * (kernel.constant_bytes > cache_bytes) + activations * (activations > cache_bytes)


def device_of(machine: GpuMachine) -> Device:
    """Properties of a processor that the model needs."""
    return Device(
        machine.compute_capability,
        machine.multiprocessors,
        1e6 * machine.clock_mhz,
        1e9 * machine.memory_gb_s,
        machine.l2_bytes_per_cycle,
    )


def kernel_launches(function: PrimFunc) -> list[Launch]:
    """The sizes of a scheduled PrimFunc's launches, in order. Raises TargetError if a size is not known before the
    kernel runs."""
    launches = []
    for extents in _launches_below(function.body):
        block, grid = ([extents.get(f"{name}.{axis}", 1) for axis in _AXES] for name in ("threadIdx", "blockIdx"))
        launches.append(Launch((block[0], block[1], block[2]), (grid[0], grid[1], grid[2]), {}))
    return launches


def _launches_below(statement: Stmt) -> Iterator[dict[str, int]]:
    """The extents of the thread axes of each launch; statements between launches are loops, blocks and sequences."""
    from schedules.gpu.launch import THREAD
    from schedules.ir.tir import s_tir, tirx

    if (isinstance(statement, tirx.For) and statement.kind == THREAD) or (
        isinstance(statement, tirx.AttrStmt) and str(statement.attr_key) == "thread_extent"
    ):
        yield _extents(statement)
    elif isinstance(statement, tirx.SeqStmt):
        for each in statement.seq:
            yield from _launches_below(each)
    elif isinstance(statement, s_tir.SBlockRealize):
        yield from _launches_below(statement.block.body)
    elif hasattr(statement, "body"):
        yield from _launches_below(statement.body)


def _extents(statement: Stmt) -> dict[str, int]:
    from schedules.gpu.launch import THREAD
    from schedules.ir.tir import structural_walk, tirx

    extents: dict[str, int] = {}

    def note(tag: str, extent: Expr) -> None:
        if not isinstance(extent, tirx.IntImm):
            raise TargetError(f"the size of a launch ({tag}) is known only at run time", "give its shape")
        extents[tag] = max(extents.get(tag, 1), int(extent.value))

    def loop(node: Stmt) -> None:
        if node.kind == THREAD:
            note(str(node.thread_binding.thread_tag), node.extent)

    def attribute(node: Stmt) -> None:
        if str(node.attr_key) == "thread_extent":
            note(str(node.node.thread_tag), node.value)

    structural_walk(statement, [(tirx.For, loop), (tirx.AttrStmt, attribute)])
    return extents


def _nbytes(buffer: Buffer) -> int:
    from schedules.ir.stages import dtype_of, shape_of
    from schedules.machine import dtype_bits

    return math.prod(int(size) for size in shape_of(buffer)) * dtype_bits(dtype_of(buffer)) // 8


def _parts(launches: list[LaunchEstimate], from_memory: float) -> dict[str, float]:
    """Breakdown of the slowest launch, for people."""
    slowest = max(launches, key=lambda each: each.seconds)
    demand = slowest.demand
    return {
        "launches": float(len(launches)),
        "device memory s": from_memory,
        "registers": float(slowest.resources.registers),
        "spilled bytes": float(slowest.resources.spill_stores + slowest.resources.spill_loads),
        "shared bytes": float(slowest.resources.shared),
        "blocks": float(slowest.blocks),
        "blocks per multiprocessor": float(slowest.occupancy.blocks),
        "waves": slowest.waves,
        "cycles of a block": demand.cycles,
        "instructions of a block": float(demand.instructions),
        "multiply-adds of tensor cores": demand.multiply_adds,
        "bank conflicts": float(demand.conflicts),
        "L2 bytes of a block": 32.0 * demand.sectors,
    }


@cache
def _version_of(nvcc: Nvcc) -> str:
    return nvcc.version()


LAUNCH_SECONDS = 1.5e-6
"""Seconds per launch within a CUDA graph."""
_WORD = 4
_SPILLED_EVERY = 1024
"""Instructions of a warp between two spills: their positions are unknown, so a loop of this length is assumed."""


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        multiprocessors: number of multiprocessors.
        clock: cycles per second.
        memory: bytes per second of its memory.
        l2: bytes per cycle of its L2 cache, for all multiprocessors together.
    """

    compute_capability: int
    multiprocessors: int
    clock: float
    memory: float
    l2: float


@dataclass(frozen=True)
class LaunchEstimate:
    """Estimate of a launch; `limit` names its bottleneck."""

    kernel: str
    seconds: float
    limit: str
    occupancy: Occupancy
    waves: float
    blocks: int
    demand: Demand
    resources: KernelResources


def estimate_launch(
    kernel: Kernel, resources: KernelResources, launch: Launch, device: Device, nbytes: int = 0
) -> LaunchEstimate:
    """The time of a launch. Raises TargetError if the kernel cannot be modeled, or its block does not fit a
    multiprocessor. `nbytes`: least traffic with the device's memory, in bytes."""
    model = multiprocessor(device.compute_capability)
    resident = occupancy(model, launch.threads, resources.registers, resources.shared)
    if not resident.blocks:
        raise TargetError(
            f"a multiprocessor cannot hold a block of kernel {kernel.name!r}: its {resident.limit} do not suffice",
            "compile for another device",
        )
    at_once = min(resident.blocks, -(-launch.blocks // device.multiprocessors))
    l1_bytes = max(model.shared_bytes - at_once * resources.shared, 16 << 10) // at_once
    demand = BlockRun(program_of(kernel, model), launch, model, l1_bytes).run()
    _add_spills(demand, resources, launch, model)
    cycles, limit = _cycles(demand, launch, resident, device)
    seconds = cycles / device.clock
    if nbytes / device.memory > seconds:
        seconds, limit = nbytes / device.memory, "device memory"
    waves = launch.blocks / (resident.blocks * device.multiprocessors)
    return LaunchEstimate(
        kernel.name, seconds + LAUNCH_SECONDS, limit, resident, waves, launch.blocks, demand, resources
    )


def _add_spills(demand: Demand, resources: KernelResources, launch: Launch, model: Multiprocessor) -> None:
    """Add the cost of moving spilled registers to memory and back."""
    words = (resources.spill_stores + resources.spill_loads) / _WORD
    if not words:
        return
    warps = -(-launch.threads // 32)
    times = max(1.0, demand.instructions / warps / _SPILLED_EVERY)
    passes = words * warps * times
    demand.work[RESOURCES.index("memory")] += passes
    demand.work[RESOURCES.index("issue")] += passes / PARTITIONS
    demand.cycles += passes + words * times * model.l1_latency / warps


def _cycles(demand: Demand, launch: Launch, resident: Occupancy, device: Device) -> tuple[float, str]:
    """Cycles of the busiest multiprocessor: rounds of as many blocks as it holds, and the remainder."""
    own = -(-launch.blocks // device.multiprocessors)
    rounds, rest = divmod(own, resident.blocks)
    full, limit = _together(demand, launch, resident.blocks, device) if rounds else (0.0, "")
    last, limit_of_last = _together(demand, launch, rest, device) if rest else (0.0, "")
    return rounds * full + last, limit or limit_of_last


def _together(demand: Demand, launch: Launch, blocks: int, device: Device) -> tuple[float, str]:
    """Cycles of a number of concurrent blocks, and their bottleneck."""
    warps = blocks * -(-launch.threads // 32)
    uneven = -(-warps // PARTITIONS) * PARTITIONS / warps
    busy = min(device.multiprocessors, launch.blocks)
    model = multiprocessor(device.compute_capability)
    # The L2 cache has less bandwidth per multiprocessor if all use it.
    slower = {"l2": max(1.0, model.l2_bytes * busy / device.l2)}
    needed = {
        name: blocks * cycles * (slower.get(name, 1.0) if name in SHARED_BY_PARTITIONS else uneven)
        for name, cycles in zip(RESOURCES, demand.work, strict=True)
    }
    limit = max(needed, key=lambda each: needed[each])
    return (demand.cycles, "latency") if demand.cycles > needed[limit] else (needed[limit], limit)
