"""How long a launch takes: the demand of its blocks, and how many of them a multiprocessor works on at once."""

from __future__ import annotations

from dataclasses import dataclass

from targets.cuda.nvcc import KernelResources
from targets.cuda.performance.execution import BlockRun, Demand, Launch
from targets.cuda.performance.program import RESOURCES, SHARED_BY_PARTITIONS, program_of
from targets.cuda.performance.ptx import Kernel
from targets.cuda.performance.throughput import PARTITIONS, Multiprocessor, Occupancy, multiprocessor, occupancy
from targets.errors import TargetError

LAUNCH_SECONDS = 1.5e-6
"""Of a launch by itself, as part of a CUDA graph."""
_WORD = 4
_SPILLED_EVERY = 1024
"""Where registers are moved to memory is not known: taken to be a loop of so many instructions of a warp."""


@dataclass(frozen=True)
class Device:
    """A graphics processor.

    Attributes:
        multiprocessors: how many.
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
    """Estimate of a launch; `limit` names what it waits for most."""

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
    """The time of a launch.

    Args:
        nbytes: that the device's memory has to deliver or take at least.

    Raises:
        TargetError: the kernel cannot be modelled, or a multiprocessor cannot hold a block of it.
    """
    model = multiprocessor(device.compute_capability)
    held = occupancy(model, launch.threads, resources.registers, resources.shared)
    if not held.blocks:
        raise TargetError(
            f"a multiprocessor cannot hold a block of kernel {kernel.name!r}: its {held.limit} do not suffice",
            "compile for another device",
        )
    at_once = min(held.blocks, -(-launch.blocks // device.multiprocessors))
    l1_bytes = max(model.shared_bytes - at_once * resources.shared, 16 << 10) // at_once
    demand = BlockRun(program_of(kernel, model), launch, model, l1_bytes).run()
    _add_spills(demand, resources, launch, model)
    cycles, limit = _cycles(demand, launch, held, device)
    seconds = cycles / device.clock
    if nbytes / device.memory > seconds:
        seconds, limit = nbytes / device.memory, "device memory"
    waves = launch.blocks / (held.blocks * device.multiprocessors)
    return LaunchEstimate(kernel.name, seconds + LAUNCH_SECONDS, limit, held, waves, launch.blocks, demand, resources)


def _add_spills(demand: Demand, resources: KernelResources, launch: Launch, model: Multiprocessor) -> None:
    """Add the moves of registers to memory and back."""
    words = (resources.spill_stores + resources.spill_loads) / _WORD
    if not words:
        return
    warps = -(-launch.threads // 32)
    times = max(1.0, demand.instructions / warps / _SPILLED_EVERY)
    passes = words * warps * times
    demand.work[RESOURCES.index("memory")] += passes
    demand.work[RESOURCES.index("issue")] += passes / PARTITIONS
    demand.cycles += passes + words * times * model.l1_latency / warps


def _cycles(demand: Demand, launch: Launch, held: Occupancy, device: Device) -> tuple[float, str]:
    """Of a multiprocessor that has most to do: rounds of as many blocks as it holds, and what is left over."""
    own = -(-launch.blocks // device.multiprocessors)
    rounds, rest = divmod(own, held.blocks)
    full, limit = _together(demand, launch, held.blocks, device) if rounds else (0.0, "")
    last, limit_of_last = _together(demand, launch, rest, device) if rest else (0.0, "")
    return rounds * full + last, limit or limit_of_last


def _together(demand: Demand, launch: Launch, blocks: int, device: Device) -> tuple[float, str]:
    """Cycles of so many blocks that run side by side, and what they wait for."""
    warps = blocks * -(-launch.threads // 32)
    uneven = -(-warps // PARTITIONS) * PARTITIONS / warps
    busy = min(device.multiprocessors, launch.blocks)
    model = multiprocessor(device.compute_capability)
    # The L2 cache has less for each multiprocessor when all ask it.
    slower = {"l2": max(1.0, model.l2_bytes * busy / device.l2)}
    needed = {
        name: blocks * cycles * (slower.get(name, 1.0) if name in SHARED_BY_PARTITIONS else uneven)
        for name, cycles in zip(RESOURCES, demand.work, strict=True)
    }
    limit = max(needed, key=lambda each: needed[each])
    return (demand.cycles, "latency") if demand.cycles > needed[limit] else (needed[limit], limit)
