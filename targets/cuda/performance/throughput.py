"""Throughput of a multiprocessor of each compute capability per cycle, and latencies.

Sources: NVIDIA's CUDA C++ Programming Guide (arithmetic instructions and technical specifications by compute
capability) and architecture papers, and for latencies and the share of tensor cores' peak that `mma` reaches published
microbenchmarks (Sun et al., "Dissecting Tensor Cores via Microbenchmarks"; Luo et al., "Benchmarking and Dissecting
the NVIDIA Hopper GPU Architecture").
"""

from __future__ import annotations

from dataclasses import dataclass, field

from targets.errors import TargetError

PARTITIONS = 4
"""Partitions of a multiprocessor; each has its own warps and arithmetic units."""


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of a multiprocessor, and its throughput per cycle, in warp instructions unless noted.

    Attributes:
        warps, blocks, shared_bytes: resident at once.
        reserved_bytes: bytes of shared memory that the system reserves per block.
        float32, integer, float64, special: instructions; `integer` excludes multiplications.
        tensor: multiply-adds of tensor cores by operand type, as far as `mma` instructions reach their peak.
        l2_bytes: bytes that one multiprocessor can read from the L2 cache.
        l1_pass: cycles for 128 bytes from the L1 cache.
        shared_latency, l1_latency, l2_latency, memory_latency, tensor_latency: cycles until a result can be used.
    """

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int
    float32: float
    float64: float
    tensor: dict[str, float]
    l2_latency: int
    memory_latency: int
    tensor_latency: int
    integer: float = 2.0
    special: float = 0.5
    l2_bytes: float = 64.0
    l1_pass: int = 1
    shared_latency: int = 26
    l1_latency: int = 36
    registers: int = field(default=65536)


_KIB = 1024
_MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 * _KIB, 0, 2, 1 / 16, {"f16": 512, "s8": 1024}, 200, 480, 28, l1_pass=2),
    80: Multiprocessor(
        64, 32, 164 * _KIB, _KIB, 2, 1, {"f16": 1024, "bf16": 1024, "s8": 2048, "tf32": 512, "f64": 64}, 220, 480, 26
    ),
    86: Multiprocessor(
        48, 16, 100 * _KIB, _KIB, 4, 1 / 16, {"f16": 256, "bf16": 256, "s8": 1024, "tf32": 128}, 230, 480, 34, l1_pass=2
    ),
    87: Multiprocessor(
        48, 16, 164 * _KIB, _KIB, 4, 1 / 16, {"f16": 1024, "bf16": 1024, "s8": 2048, "tf32": 512}, 230, 600, 34
    ),
    89: Multiprocessor(
        48, 24, 100 * _KIB, _KIB, 4, 1 / 16, {"f16": 256, "bf16": 256, "s8": 1024, "tf32": 128}, 270, 600, 34, l1_pass=2
    ),
    # `mma` reaches 62 % of the rate of Hopper's asynchronous `wgmma`.
    90: Multiprocessor(
        64, 32, 228 * _KIB, _KIB, 4, 2, {"f16": 1270, "bf16": 1270, "s8": 2540, "tf32": 635, "f64": 128}, 270, 600, 33
    ),
}


def multiprocessor(compute_capability: int) -> Multiprocessor:
    """The multiprocessor of a compute capability. Raises TargetError if none is described."""
    model = _MULTIPROCESSORS.get(compute_capability)
    if model is None:
        known = ", ".join(f"{each / 10}" for each in _MULTIPROCESSORS)
        raise TargetError(
            f"kernels for compute capability {compute_capability / 10} cannot be modelled",
            f"name a device to time them on; the multiprocessors of {known} are described",
        )
    return model


@dataclass(frozen=True)
class Occupancy:
    """Number of blocks that a multiprocessor holds at once, and what limits them."""

    blocks: int
    limit: str


def occupancy(model: Multiprocessor, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Occupancy of a kernel, from its block's threads, a thread's registers and a block's shared memory in bytes."""
    warps = -(-threads // 32)
    # Registers are allocated to a warp 256 at a time, separately in each partition.
    of_warp = -(-max(registers, 1) * 32 // 256) * 256
    resident = model.registers // PARTITIONS // of_warp * PARTITIONS
    shared = -(-(shared_bytes + model.reserved_bytes) // 128) * 128
    limits = {
        "blocks": model.blocks,
        "warps": model.warps // warps,
        "registers": resident // warps,
        "shared memory": model.shared_bytes // shared if shared else model.blocks,
    }
    limit = min(limits, key=lambda each: limits[each])
    return Occupancy(limits[limit], limit)
