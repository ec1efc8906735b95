"""Runs the index arithmetic of one block of threads, and records the demand of its instructions on a multiprocessor.

All threads run together: a value is an array with one element per thread. When threads diverge, those furthest behind
in the program run first, so that they reconverge after the branch. Loaded values are unknown; branches that depend on
them are not taken. Time passes as if the block had the multiprocessor to itself: within a basic block an instruction
only waits for its operands, since nvcc's assembler reorders them; basic blocks follow each other, and a barrier waits
for accesses to shared memory. Work between two barriers takes as long as its busiest unit.

Memory traffic is counted per access of a block's threads: 32-byte sectors, and passes over shared memory's banks.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.cuda.performance.integers import Value, as_type, signed
from targets.cuda.performance.program import RESOURCES, SHARED_BY_PARTITIONS, Kind, Program, Step
from targets.cuda.performance.throughput import PARTITIONS, Multiprocessor
from targets.errors import TargetError

MAX_STEPS = 3_000_000
"""Limit on the instructions of a block: kernels on a single thread exceed it."""
_BARRIER = 20
_BRANCH = 2
_PLACES = {name: index for index, name in enumerate(RESOURCES)}
_MEMORY, _L2 = _PLACES["memory"], _PLACES["l2"]
_SCATTERED = 32  # sectors of a warp's access to unknown addresses


@dataclass(frozen=True)
class Launch:
    """Launch of a kernel: sizes of a block and of the grid, and values of its non-pointer parameters."""

    block: tuple[int, int, int]
    grid: tuple[int, int, int]
    scalars: Mapping[str, int]

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass
class Demand:
    """Demand of a block on a multiprocessor.

    Attributes:
        work: cycles that each of `RESOURCES` is busy, with all partitions of the multiprocessor in use.
        cycles: from its start to its end, alone on a multiprocessor.
        instructions: instructions of all its warps.
        multiply_adds: multiply-adds of tensor cores.
        sectors: 32-byte sectors transferred from or to the L2 cache.
        accesses, scattered: sectors that its accesses to global memory touch, warp by warp; and sectors at unknown
            addresses.
        conflicts: passes over shared memory beyond those the data needs.
    """

    work: list[float]
    cycles: float = 0.0
    instructions: int = 0
    multiply_adds: float = 0.0
    sectors: int = 0
    accesses: int = 0
    scattered: int = 0
    shared_passes: int = 0
    conflicts: int = 0


class BlockRun:
    """The block in the middle of a grid."""

    def __init__(self, program: Program, launch: Launch, model: Multiprocessor, l1_bytes: int) -> None:
        self._program, self._launch, self._model = program, launch, model
        self._warps = -(-launch.threads // WARP)
        lanes = self._warps * WARP
        self._traffic, self._l1 = Traffic(lanes, model.l1_pass), FirstLevel(l1_bytes)
        self._values: dict[str, Value] = self._special(lanes)
        self._ready: dict[str, float] = {}
        self._demand = Demand([0.0] * len(RESOURCES))
        self._phase = [0.0] * len(RESOURCES)
        self._fence = self._phase_began = self._issued = self._shared_done = 0.0
        self._mask: Mask | None = None
        self._active = self._warps
        # A partition with fewer warps than the others idles while those work.
        uneven = -(-self._warps // PARTITIONS) * PARTITIONS / self._warps
        self._slower = [1.0 if each in SHARED_BY_PARTITIONS else uneven for each in RESOURCES]

    def run(self) -> Demand:
        """Execute the block. Raises TargetError if it does not end within `MAX_STEPS` instructions."""
        lanes = self._warps * WARP
        start: Mask | None = None if lanes == self._launch.threads else np.arange(lanes) < self._launch.threads
        fronts: list[tuple[int, int, Mask | None]] = [(0, 0, start)]
        counter, steps = 0, 0
        while fronts:
            number, _, mask = heapq.heappop(fronts)
            while fronts and fronts[0][0] == number:
                mask = _joined(mask, heapq.heappop(fronts)[2])
            if number >= len(self._program.blocks):
                continue
            self._enter(mask)
            steps += len(self._program.blocks[number]) + 1
            if steps > MAX_STEPS:
                raise TargetError(
                    f"a block of the kernel executes more than {MAX_STEPS} instructions, so it is not modelled",
                    "time it on a device",
                )
            for target, way in self._basic_block(number):
                counter += 1
                heapq.heappush(fronts, (target, counter, way))
        self._end_phase(self._issued)
        self._demand.cycles = self._fence
        return self._demand

    def _special(self, lanes: int) -> dict[str, Value]:
        thread = np.minimum(np.arange(lanes, dtype=np.int64), self._launch.threads - 1)
        x, y, _ = self._launch.block
        at = self._launch.blocks // 2
        gx, gy, gz = self._launch.grid
        registers: dict[str, Value] = {
            "%tid.x": thread % x if y > 1 or self._launch.block[2] > 1 else thread,
            "%tid.y": thread // x % y if y > 1 else 0,
            "%tid.z": thread // (x * y) if self._launch.block[2] > 1 else 0,
            "%ctaid.x": at % gx,
            "%ctaid.y": at // gx % gy,
            "%ctaid.z": at // (gx * gy),
            "%laneid": thread % WARP,
        }
        registers |= {f"%ntid.{axis}": size for axis, size in zip("xyz", self._launch.block, strict=True)}
        registers |= {f"%nctaid.{axis}": size for axis, size in zip("xyz", (gx, gy, gz), strict=True)}
        return registers

    def _enter(self, mask: Mask | None) -> None:
        if mask is not None and mask.all():
            mask = None
        self._mask = mask
        self._active = self._warps if mask is None else int(mask.reshape(-1, WARP).any(axis=1).sum())

    def _basic_block(self, number: int) -> list[tuple[int, Mask | None]]:
        """Execute it, and return where its threads continue."""
        costs, count = self._program.fixed[number]
        for at, cost in enumerate(costs):
            if cost:
                self._phase[at] += cost * self._active
        self._demand.instructions += count * self._active
        for step in self._program.blocks[number]:
            kind = step.kind
            if kind is Kind.BRANCH:
                self._fence = max(self._fence, self._issued) + _BRANCH
                return self._branched(step, number)
            if kind is Kind.RETURN:
                returned = self._predicate_mask(step)
                return [] if returned is None else self._without(returned, number + 1)
            self._execute(step)
        self._fence = max(self._fence, self._issued)
        return [(number + 1, self._mask)]

    def _without(self, mask: Mask, number: int) -> list[tuple[int, Mask | None]]:
        rest = ~mask if self._mask is None else self._mask & ~mask
        return [(number, rest)] if rest.any() else []

    def _branched(self, step: Step, number: int) -> list[tuple[int, Mask | None]]:
        if not step.predicate:
            return [(step.target, self._mask)]
        branches = self._predicate_mask(step)
        if branches is None:
            return [(step.target, self._mask)]
        ways: list[tuple[int, Mask | None]] = [(step.target, branches)] if branches.any() else []
        return ways + self._without(branches, number + 1)

    def _predicate_mask(self, step: Step) -> Mask | None:
        """The active threads for which an instruction's predicate holds; None for all active ones."""
        if not step.predicate:
            return None
        value = self._values.get(step.predicate)
        if value is None:
            value = step.negated  # unknown, assumed not to hold
        holds = np.broadcast_to(np.asarray(value, dtype=bool), (self._warps * WARP,))
        holds = ~holds if step.negated else holds
        if self._mask is None:
            return None if holds.all() else holds
        found = holds & self._mask
        return None if found.sum() == self._mask.sum() else found

    def _execute(self, step: Step) -> None:
        mask, active = self._mask, self._active
        if step.predicate:
            own = self._predicate_mask(step)
            mask = self._mask if own is None else own
            active = self._warps if mask is None else int(mask.reshape(-1, WARP).any(axis=1).sum())
            for at, cost in enumerate(step.costs):
                self._phase[at] += cost * active
            self._demand.instructions += active
            if not active:
                return
        ready = self._ready
        start = self._fence
        for register in step.waits_for:
            start = max(start, ready.get(register, 0.0))
        self._issued = max(self._issued, start)
        latency = step.latency
        value: Value = None
        if step.kind is Kind.COMPUTE:
            value = self._computed(step)
            self._demand.multiply_adds += step.multiply_adds * active
        elif step.kind is Kind.PARAMETER:
            value = self._parameter(step)
        elif step.kind is Kind.BARRIER:
            self._end_phase(max(self._issued, self._shared_done) + _BARRIER)
            return
        else:
            latency = self._accessed(step, mask, active)
            if step.space == "shared":
                self._shared_done = max(self._shared_done, start + latency)
        for register in step.results:
            ready[register] = start + latency
            self._values[register] = self._merged(register, value, mask)

    def _merged(self, register: str, value: Value, mask: Mask | None) -> Value:
        if mask is None or value is None:
            return value
        before = self._values.get(register)
        return np.where(mask, value, 0 if before is None else before)

    def _computed(self, step: Step) -> Value:
        if step.operation is None:
            return None
        values: list[Any] = []
        for operand, kind in zip(step.operands, step.kinds, strict=True):
            value = self._values.get(operand) if isinstance(operand, str) else operand
            if value is None:
                return None
            values.append(as_type(value, kind))
        found = step.operation(*values)
        return found if step.bits == 1 else signed(found, step.bits)

    def _parameter(self, step: Step) -> Value:
        """A scalar's value; pointers are far apart."""
        if not step.operands:
            return None
        name = step.operands[0]
        names = [each for _, each in self._program.parameters]
        if name in self._launch.scalars:
            return self._launch.scalars[str(name)]
        kind = {each: kind for kind, each in self._program.parameters}[str(name)]
        return (names.index(str(name)) + 1) << 40 if kind.endswith("64") else None

    def _accessed(self, step: Step, mask: Mask | None, active: int) -> float:
        """Record an access; return the cycles until its result can be used."""
        base = step.operands[0]
        address = self._values.get(base) if isinstance(base, str) else base
        if step.kind in (Kind.MATRIX_LOAD, Kind.MATRIX_STORE):
            return self._matrix_access(step, address, active)
        space = step.space
        if space == "generic" and address is not None:
            space = "shared" if bool(np.max(address) < 1 << 40) else "global"
        if space == "shared":
            passes = active if address is None else self._traffic.of_shared(address + step.offset, step.nbytes, mask)
            self._note_shared(passes, active * max(1, step.nbytes // 4))
            return self._model.shared_latency
        if space in ("local", "const"):
            self._phase[_MEMORY] += active * max(1, step.nbytes // 4)
            return self._model.l1_latency
        return self._global_access(step, address, mask, active)

    def _global_access(self, step: Step, address: Value, mask: Mask | None, active: int) -> float:
        store = step.kind is Kind.STORE
        if address is None:
            sectors = passes = touched = _SCATTERED * active
            self._demand.scattered += sectors
        else:
            access = self._traffic.of_global(address + step.offset, step.nbytes, mask)
            passes, touched = access.passes, access.of_warps
            sectors = touched if store else self._l1.misses(access.sectors)
        self._phase[_MEMORY] += passes
        self._phase[_L2] += sectors * SECTOR / self._model.l2_bytes
        self._demand.sectors += sectors
        self._demand.accesses += touched
        return self._model.l2_latency if sectors else self._model.l1_latency

    def _matrix_access(self, step: Step, address: Value, active: int) -> float:
        """A 16 by 16 tile, read as eight rows of 16 bytes at a time, or written as two numbers per thread."""
        pitch = self._values.get(step.operands[1]) if isinstance(step.operands[1], str) else step.operands[1]
        words = 16 * 16 * step.nbytes // 128
        if address is None or not isinstance(pitch, int | np.integer) or step.space != "shared":
            self._note_shared(words * active, words * active)
            return step.latency
        lanes = np.arange(self._warps * WARP) % WARP
        row_bytes = int(pitch) * step.nbytes
        at = address + step.offset
        if step.kind is Kind.MATRIX_STORE:
            positions = lanes // 4 * row_bytes + lanes % 4 * 2 * step.nbytes
            width, times = 2 * step.nbytes, 4.0
        else:
            wide = step.nbytes  # 16-byte parts of a row
            positions = lanes % 8 * row_bytes + lanes // 8 % wide * 16 + lanes // (8 * wide) % 2 * 8 * row_bytes
            width, times = 16, words / 4
        passes = int(self._traffic.of_shared(at + positions, width, self._mask) * times)
        self._note_shared(passes, words * active)
        return step.latency

    def _note_shared(self, passes: int, least: int) -> None:
        self._phase[_MEMORY] += passes
        self._demand.shared_passes += passes
        self._demand.conflicts += max(0, passes - least)

    def _end_phase(self, time: float) -> None:
        """End a phase: all work up to here is done, after at least the time of its busiest unit."""
        busy = max(cost * slower for cost, slower in zip(self._phase, self._slower, strict=True))
        self._fence = self._issued = self._phase_began = max(time, self._phase_began + busy)
        for at, cost in enumerate(self._phase):
            self._demand.work[at] += cost
            self._phase[at] = 0.0


def _joined(one: Mask | None, other: Mask | None) -> Mask | None:
    return None if one is None or other is None else one | other


WARP = 32
SECTOR = 32
_LINE = 128
_BANKS = 32
_BANK_BYTES = 4
_PASS_BYTES = 128
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Access:
    """One access.

    Attributes:
        passes: cycles that the load/store unit is busy with it.
        sectors: numbers of the distinct global memory sectors that all warps touch.
        of_warps: number of sectors, counted per warp.
    """

    passes: int
    sectors: NDArray[np.int64]
    of_warps: int


class Traffic:
    """Accesses of a block of `lanes` threads, a multiple of 32; analyses of equal patterns are kept. `l1_pass`: cycles
    for 128 bytes of global memory from the L1 cache."""

    def __init__(self, lanes: int, l1_pass: int = 1) -> None:
        self._lanes, self._l1_pass = lanes, l1_pass
        self._known: dict[Any, tuple[int, NDArray[np.int64], int]] = {}

    def of_global(self, addresses: int | NDArray[np.int64], nbytes: int, mask: Mask | None) -> Access:
        """An access of `nbytes` per thread to global memory."""
        offsets, base = self._relative(addresses, mask)
        key = (offsets.tobytes(), base % _LINE, nbytes, None if mask is None else mask.tobytes())
        if key not in self._known:
            self._known[key] = self._sectors(offsets + base % _LINE, nbytes, mask)
        passes, sectors, of_warps = self._known[key]
        return Access(passes, sectors + base // _LINE * (_LINE // SECTOR), of_warps)

    def of_shared(self, addresses: int | NDArray[np.int64], nbytes: int, mask: Mask | None) -> int:
        """Passes of an access of `nbytes` per thread to shared memory."""
        offsets, base = self._relative(addresses, mask)
        key = ("shared", offsets.tobytes(), base % _PASS_BYTES, nbytes, None if mask is None else mask.tobytes())
        if key not in self._known:
            passes = self._bank_passes(offsets + base % _PASS_BYTES, nbytes, mask)
            self._known[key] = (passes, np.zeros(0, np.int64), 0)
        return self._known[key][0]

    def _relative(self, addresses: int | NDArray[np.int64], mask: Mask | None) -> tuple[NDArray[np.int64], int]:
        own = np.broadcast_to(np.asarray(addresses, np.int64), (self._lanes,))
        active = own if mask is None else own[mask]
        base = int(active.min()) if active.size else 0
        base -= base % _LINE
        return own - base, base

    def _warps(self, values: NDArray[np.int64], mask: Mask | None) -> NDArray[np.int64]:
        """(warps, 32); -1 for inactive threads."""
        if mask is not None:
            values = np.where(mask, values, -1)
        return values.reshape(-1, WARP)

    def _sectors(self, own: NDArray[np.int64], nbytes: int, mask: Mask | None) -> tuple[int, NDArray[np.int64], int]:
        sectors = self._warps(own // SECTOR, mask)
        distinct = _distinct(sectors)
        active = (sectors >= 0).sum(axis=1)
        lines = np.maximum(_distinct(np.where(sectors < 0, -1, sectors // (_LINE // SECTOR))), 1)
        passes = np.maximum(lines, -(-active * nbytes // _PASS_BYTES) * self._l1_pass) * (active > 0)
        unique = np.unique(sectors)
        return int(passes.sum()), unique[unique >= 0], int(distinct.sum())

    def _bank_passes(self, offsets: NDArray[np.int64], nbytes: int, mask: Mask | None) -> int:
        words = max(1, nbytes // _BANK_BYTES)
        if (offsets % min(nbytes, 16)).any():
            return self._bank_passes(offsets // _BANK_BYTES * _BANK_BYTES, _BANK_BYTES, mask) * words
        first = self._warps(offsets // _BANK_BYTES, mask)[:, :, None]
        touched = np.where(first < 0, -1, first + np.arange(words)).reshape(len(first), -1)
        ordered = np.sort(touched, axis=1)
        fresh = np.ones_like(ordered, dtype=bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        fresh &= ordered >= 0
        counts = np.zeros((len(ordered), _BANKS), np.int64)
        rows = np.broadcast_to(np.arange(len(ordered))[:, None], ordered.shape)
        np.add.at(counts, (rows[fresh], ordered[fresh] % _BANKS), 1)
        # Data read by many threads at one position is fetched once, but returned to each of them.
        returned = -(-(first[:, :, 0] >= 0).sum(axis=1) * nbytes // _PASS_BYTES)
        return int(np.maximum(counts.max(axis=1), returned).sum())


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of distinct nonnegative values in each row."""
    ordered = np.sort(values, axis=1)
    steps = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    found: NDArray[np.int64] = steps.sum(axis=1) + (ordered[:, 0] >= 0)
    return found


class FirstLevel:
    """L1 cache hits of a block: sectors that it touched stay until they no longer fit."""

    def __init__(self, nbytes: int) -> None:
        self._max_sectors = max(nbytes // SECTOR, 1)
        self._held: set[int] = set()

    def misses(self, sectors: NDArray[np.int64]) -> int:
        """Number of sectors that must be fetched."""
        fresh = set(sectors.tolist()) - self._held
        if len(self._held) + len(fresh) > self._max_sectors:
            self._held.clear()
        self._held |= fresh
        return len(fresh)
