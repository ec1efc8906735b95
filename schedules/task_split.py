"""Splits the work of a kernel into parallel tasks; no other code decides this.

A rule lists the axes that its kernel may split, in the order of its parallel loop (the last one varies fastest), and
what a split divides and what it repeats:

    rows = SplitAxis("rows", 56)
    channels = SplitAxis("channels", 8)  # register tiles
    found = split(
        [channels, rows],
        [
            Work(axes={"channels": 0, "rows": 0}, cycles=1e6),  # the matmuls: every split divides them
            Work(axes={"rows": 2}, cycles=2e4, bytes=8e5),  # copied input: two rows of halo, repeated per channel split
            Work(axes={"channels": 0}, bytes=5e5),  # weights: repeated for each split of rows
        ],
        machine,
    )
    found.sizes["rows"], found.parts["rows"]  # steps of a part (the last one may have fewer), and parts

and writes one parallel loop over the product of `parts` (`found.tasks`), or a serial one if `found.parallel` is False
because the work is too small to start the threads.

TVM splits a parallel loop into as many contiguous pieces as there are threads when the kernel runs. A split into more
tasks than the machine has cores therefore serves other numbers of threads, too. Splits are compared by their time on
all cores and on two threads (`weighted_cycles`); among those that cost little more than the best (`FREE`), the one that
suits other numbers of threads best is chosen.

The order of the loop may be chosen as well: `orders`. If an order names an axis twice, an even number of its parts is
divided into halves, one for each of two threads: `("rows", "channels", "rows")` is for each half of the rows, for each
part of the channels, the parts of that half.

For an extent known only when the kernel runs, `parts_at_run_time` is the same choice as an expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from schedules.ir.expression import expression, index, maximum, minimum
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Expr, Index, tirx
from schedules.machine import Machine

SHARED_CACHE_RATE = 16.0
"""Bytes per cycle that a core reads from the cache after its own: 26 (Zen 4), 25 (Zen 5) if otherwise idle."""
# Bytes per cycle of data that another core wrote, on top of the shared cache's time: 18 to 25 GB/s (14 at worst), when
# a core reads its own at 100 (two cores, Zen 4).
OTHER_CORES_RATE = 6.0
CORE_MEMORY_RATE = 7.0  # most bytes per cycle that one core reads from memory (Zen 4)
EXPOSED = 0.3  # fraction of the shorter of arithmetic and data movement that does not overlap
TASK_CYCLES = 150.0  # to start a task of a loop
# To launch a region of the thread pool (compiler/device/cpp/thread_pool.c) and wait for its end, in total and per
# thread.
# Between two kernels of a module the second of two threads begins after 0.4 microseconds, and its end is noticed 0.3
# later (medians, Zen 4; empty regions take 0.2). For each additional thread the caller writes a cache line and reads it
# again, and every thread that finishes reads it. Such transfers overlap: 31 lines of another core take 90 ns and one
# takes 50 (one chiplet, Zen 4); across two chiplets one takes up to 80 (AnandTech, review of the Ryzen 9 7950X, 2022).
# Measured with two threads; extrapolated for more.
START_CYCLES, START_CYCLES_OF_THREAD = 1800.0, 180.0
# Fraction of the single-core time: threads that save less are left to others. Two break even at 3 microseconds of work,
# since data written by the other thread has to be transferred as well.
WORTH = 0.7
FREE = 1.005  # factor that a split may cost to suit other numbers of threads
# Thread count that stands for few: a laptop, a container, or a program that shares the machine. A split that costs 1 %
# there must gain 1.5 % on all cores.
FEW, FEW_POWER = 2, 1.5
# Cycles of a nest, if unknown or less; cycles per point of fused loops for its indices, and the minimum.
WORK_OF_A_NEST, POINT_CYCLES, MIN_POINT_CYCLES = 3e5, 40.0, 160.0
# Share of an L2 cache that holds data read again by consecutive tasks of a thread. With 512 KB, tasks of 128 to 32
# channels at 14 x 14 each read their 262 KB of filters again: in 25 tasks of two Winograd tiles a layer takes 175 us,
# in two of eight 92 (one thread, Zen 3).
HELD = 0.4
MAX_TASKS, MAX_TASKS_OF_FEW = 16, 256  # per core; in total for few cores
_ENOUGH_TASKS = 4  # per core
_THREADS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)

Vector = NDArray[np.float64]
_Times = TypeVar("_Times", float, Vector)
_Loop = tuple[str, NDArray[np.int64]]


@dataclass(frozen=True)
class SplitAxis:
    """An axis that may be split.

    Attributes:
        name: its name, by which `Work` refers to it.
        extent: its length in steps. A step is never split: a register tile, a row, a head.
        max_steps: maximum steps of a part, given by a cache; 0: no limit.
        join: cycles to join the partial results of one more part, if the axis is summed over. All threads join parts,
        in
            a second parallel region.
    """

    name: str
    extent: int
    max_steps: int = 0
    join: float = 0.0


@dataclass(frozen=True)
class Work:
    """Work that is divided by splits of some axes, and repeated by splits of all others.

    Attributes:
        axes: for each axis that divides it, the halo: steps that a part needs beyond its own. Or, if the work of a part
            is not its number of steps, the work of parts of 1, 2, 3... steps, in steps.
        cycles: total arithmetic, on one core. It is repeated in each task.
        bytes: total traffic beyond a core's own caches. Consecutive tasks of a thread that need the same part read it
            once, if `HELD` of the L2 cache holds it.
        passed: total bytes written by the previous kernel, assuming the same split: a thread that needs other parts
            than it wrote gets them from the caches of other cores.
        from_memory: the bytes are weights, which each thread reads from memory if they exceed half of an L2 cache: the
            weights of such networks do not fit a shared cache. Repeated reads by its tasks come from the shared cache.
    """

    axes: Mapping[str, float | Sequence[float]]
    cycles: float = 0.0
    bytes: float = 0.0
    passed: float = 0.0
    from_memory: bool = False


@dataclass(frozen=True)
class TaskSplit:
    """A split of all axes into parts.

    Attributes:
        sizes: steps of a part of each axis; the last part may have fewer.
        parts: parts of each axis, none of them empty.
        parallel: False if starting threads does not pay off.
        cycles: estimated time on the machine's cores.
        serial_cycles: estimated time of the same tasks on one core.
        few_cycles: estimated time of the same tasks on `FEW` threads.
        order: axes of the loop over tasks, outermost first; parts of an axis named twice are divided into halves.
    """

    sizes: Mapping[str, int]
    parts: Mapping[str, int] = field(compare=False)
    parallel: bool
    cycles: float
    serial_cycles: float
    few_cycles: float
    order: tuple[str, ...] = ()

    def shared(self, images: Index, machine: Machine) -> bool | Expr:
        """True if threads share the tasks of this many images. If their number is an expression, this is the split of
        one image, and the result a run-time condition unless the tasks of one image are enough."""
        if self.parallel or isinstance(images, int):
            return self.parallel
        return pays_at_run_time(images, self.serial_cycles, machine)

    @property
    def weighted(self) -> float:
        """The `weighted_cycles` of the split."""
        return weighted_cycles(self.cycles, self.few_cycles)

    @property
    def tasks(self) -> int:
        """Iterations of the loop over all parts."""
        return math.prod(self.parts.values())


def split_tasks(
    axes: Sequence[SplitAxis],
    works: Sequence[Work],
    machine: Machine,
    free: float = FREE,
    orders: Sequence[Sequence[str]] = (),
) -> TaskSplit:
    """The split with the least `weighted_cycles`; the same for the same arguments.

    Args:
        free: factor that the split may cost to suit other numbers of threads.
        orders: candidate orders of the parallel loop, outermost first; by default only that of `axes`.

    Raises ValueError for an axis with no steps.
    """
    every = [tuple(order) for order in orders] or [tuple(axis.name for axis in axes)]
    return _best(axes, works, _candidates(axes, machine), machine, free, orders=every)


@dataclass(frozen=True)
class NestSplit:
    """A split of a nest of loops in which only the innermost one may be divided.

    Attributes:
        fused: outer loops, fused into the loop over tasks.
        run: steps of a part of the innermost loop; the last part may have fewer.
    """

    fused: int
    run: int


def split_nest(outer: Sequence[Index], machine: Machine, cycles: float = 0.0, run: int = 1) -> NestSplit:
    """The split of a nest: tasks from its leading loops only, or from all outer ones and parts of the innermost loop.

    Unknown lengths of outer loops count as 1, and these loops are always fused.

    Args:
        cycles: cycles of the whole nest on one core, if known.
        run: steps of the innermost loop.
    """
    axes = [*(SplitAxis(str(i), max(each, 1) if isinstance(each, int) else 1) for i, each in enumerate(outer))]
    axes.append(SplitAxis("run", run))
    extents = [axis.extent for axis in axes]
    maximum = max(MAX_TASKS * machine.cores, MAX_TASKS_OF_FEW) // math.prod(extents[:-1])
    parts = {ceil_div(run, count) for count in range(1, min(run, maximum) + 1)}
    unknown = max((i + 1 for i, each in enumerate(outer) if not isinstance(each, int)), default=0)
    leading = [[1] * fused + extents[fused:] for fused in range(unknown, len(outer))]
    sizes = np.array([*leading, *([1] * len(outer) + [part] for part in sorted(parts or {run}))], dtype=np.int64)
    minimum = max(WORK_OF_A_NEST, MIN_POINT_CYCLES * math.prod(extents[:-1]))
    works = [Work({axis.name: 0 for axis in axes}, max(cycles, minimum))]
    split = _best(axes, works, sizes, machine, task=POINT_CYCLES)
    fused = [i + 1 for i, axis in enumerate(axes[:-1]) if axis.extent > split.sizes[axis.name]]
    return NestSplit(max(unknown, *fused, 0), split.sizes["run"])


def chunks_at_run_time(machine: Machine) -> int:
    """Number of roughly equal pieces to split a nest of unknown size into, if threads pay off."""
    longest = MAX_TASKS * machine.cores
    return ceil_div(longest, split_nest([], machine, run=longest).run)


def keep_busy(tasks: Index, machine: Machine) -> bool | Expr:
    """True if this number of equal tasks keeps all cores busy: the busiest core has at most a quarter more than its
    share."""
    return tasks >= _ENOUGH_TASKS * machine.cores


def busiest_share(tasks: int, cores: int) -> float:
    """The fraction of equal tasks that the busiest core runs."""
    return ceil_div(tasks, cores) / tasks


def balancing_parts(tasks: int, machine: Machine) -> int:
    """Number of parts, of unknown length, to split each of equal tasks into so that all cores have the same load."""
    return 1 if keep_busy(tasks, machine) else machine.cores // math.gcd(tasks, machine.cores)


def min_parallel_cycles(cores: int) -> float:
    """The least work on one core that is worth starting threads."""
    return start_cycles(cores) / (WORTH - 1 / cores) if cores > 1 else math.inf


def pays_at_run_time(amount: Index, cycles: float, machine: Machine) -> bool | Expr:
    """True if running this many steps of `cycles` each in parallel pays off; a run-time condition if the number is an
    expression."""
    minimum = min_parallel_cycles(machine.cores) / max(cycles, 1e-3)
    if isinstance(amount, int) or machine.cores == 1:
        return isinstance(amount, int) and amount >= minimum
    return amount >= index(math.ceil(minimum))


def _best(
    axes: Sequence[SplitAxis],
    works: Sequence[Work],
    sizes: NDArray[np.int64],
    machine: Machine,
    free: float = FREE,
    task: float = TASK_CYCLES,
    orders: Sequence[tuple[str, ...]] = (),
) -> TaskSplit:
    """The best split among the rows of `sizes` (steps of a part); `task`: cycles to start a task."""
    orders = orders or [tuple(axis.name for axis in axes)]

    def on(threads: int | NDArray[np.int64], order: tuple[str, ...], rows: NDArray[np.int64]) -> Vector:
        times = _cycles(axes, works, rows, machine, threads, task, order)
        return np.where(_is_halved(axes, rows, order), times, np.inf)

    times = np.array([on(machine.cores, order, sizes) for order in orders])
    alone = np.array([on(1, order, sizes) for order in orders])
    parallel = machine.cores > 1 and bool(times.min() < WORTH * alone.min())
    if parallel:
        few = np.array([on(FEW, order, sizes) for order in orders]) if machine.cores > FEW else times
        weighted = weighted_cycles(times, few)
        choices = np.argwhere(weighted <= free * weighted.min())
        later = np.zeros(len(choices))
        for number in set(choices[:, 0].tolist()) if len(choices) > 1 else ():
            of_order = choices[:, 0] == number
            near = np.tile(sizes[choices[of_order, 1]], (len(_THREADS), 1))
            times_of_near = on(np.repeat(_THREADS, of_order.sum()), orders[number], near)
            later[of_order] = np.log(times_of_near).reshape(len(_THREADS), -1).mean(axis=0)
        choices = choices[later.argmin() :]
    else:
        few, choices = alone, np.argwhere(alone == alone.min())
    number, best = (int(each) for each in choices[0])
    chosen = {axis.name: int(size) for axis, size in zip(axes, sizes[best], strict=True)}
    parts = {axis.name: ceil_div(axis.extent, chosen[axis.name]) for axis in axes}
    cycles, serial = (float(each[number, best]) for each in (times if parallel else alone, alone))
    return TaskSplit(chosen, parts, parallel, cycles, serial, float(few[number, best]), orders[number])


def weighted_cycles(cycles: _Times, few: _Times) -> _Times:
    """The measure by which splits and algorithms are compared: a mean of the times on all cores and `FEW` threads."""
    weighted: _Times = (cycles * few**FEW_POWER) ** (1 / (1 + FEW_POWER))
    return weighted


def _is_halved(axes: Sequence[SplitAxis], sizes: NDArray[np.int64], order: Sequence[str]) -> NDArray[np.bool_]:
    """True for splits in which each axis that an order names twice has an even number of parts."""
    parts = [-(-axis.extent // sizes[:, i]) for i, axis in enumerate(axes) if list(order).count(axis.name) > 1]
    return np.all([each % 2 == 0 for each in parts], axis=0) if parts else np.ones(len(sizes), dtype=bool)


def start_cycles(threads: int) -> float:
    """Cycles to launch and join a number of threads."""
    return START_CYCLES + START_CYCLES_OF_THREAD * threads if threads > 1 else 0.0


def estimated_cycles(
    axes: Sequence[SplitAxis], works: Sequence[Work], sizes: Mapping[str, int], machine: Machine, threads: int
) -> float:
    """Estimated time on this many threads of a split, given by the steps of a part of each axis (1: no threads)."""
    one = np.array([[sizes[axis.name] for axis in axes]], dtype=np.int64)
    return float(_cycles(axes, works, one, machine, threads)[0])


def _candidates(axes: Sequence[SplitAxis], machine: Machine) -> NDArray[np.int64]:
    """Steps of a part of each axis, one row per split, without those of too many tasks, unless no others are left."""
    choices = []
    for axis in axes:
        if axis.extent < 1:
            raise ValueError(f"axis {axis.name!r} has no steps to split")
        maximum = axis.max_steps or axis.extent
        sizes = {ceil_div(axis.extent, parts) for parts in range(1, axis.extent + 1)}
        choices.append(np.array(sorted(size for size in sizes if size <= maximum) or [maximum], dtype=np.int64))
    grid = np.stack([each.ravel() for each in np.meshgrid(*choices, indexing="ij")], axis=-1)
    extents = np.array([axis.extent for axis in axes], dtype=np.int64)
    tasks = np.prod(-(-extents // grid), axis=1)
    return grid[tasks <= max(MAX_TASKS * machine.cores, MAX_TASKS_OF_FEW, int(tasks.min()))]


def _cycles(
    axes: Sequence[SplitAxis],
    works: Sequence[Work],
    sizes: NDArray[np.int64],
    machine: Machine,
    threads: int | NDArray[np.int64],
    task: float = TASK_CYCLES,
    order: Sequence[str] = (),
) -> Vector:
    """Estimated time of each split: that of the thread with the most tasks, and of starting and joining. `threads`: one
    number, or one above 1 for each split."""
    alone = isinstance(threads, int) and threads == 1
    parts = {axis.name: -(-axis.extent // sizes[:, i]) for i, axis in enumerate(axes)}
    numbers = {axis.name: i for i, axis in enumerate(axes)}
    loops = _loops(order or list(numbers), parts)
    tasks = np.prod(list(parts.values()), axis=0)
    run = -(-tasks // threads)  # consecutive tasks of one thread
    cycles, moved = task * run, np.zeros(len(sizes))
    rate = SHARED_CACHE_RATE if machine.l3_bytes else machine.memory_rate / threads
    for work in works:
        share, covered = np.ones(len(sizes)), run.astype(np.float64)
        known: set[str] = set()
        for name, count in reversed(loops):
            if name in work.axes and name not in known:
                i = numbers[name]
                share = share * _share(axes[i], work.axes[name], sizes[:, i], parts[name], covered)
            known.add(name)
            covered = covered / count
        cycles = cycles + run * work.cycles * share
        reads = np.where(work.bytes * share <= HELD * machine.l2_bytes, -(-run // _reuse(loops, work)), run)
        if work.from_memory and machine.l3_bytes and work.bytes > machine.l2_bytes / 2:
            # At least the total traffic of all cores.
            first = np.minimum(reads, _distinct(loops, work, run))
            far = np.maximum(first * share / CORE_MEMORY_RATE, 1 / machine.memory_rate)
            moved = moved + work.bytes * (far + (reads - first) * share / rate)
        else:
            moved = moved + reads * work.bytes * share / rate
        if work.passed and not alone:
            moved = moved + work.passed * _foreign(loops, work, run) / OTHER_CORES_RATE
    time = np.maximum(cycles, moved) + EXPOSED * np.minimum(cycles, moved)
    if alone:
        return time + sum(axis.join * (parts[axis.name] - 1) for axis in axes)
    start = START_CYCLES + START_CYCLES_OF_THREAD * np.minimum(tasks, threads)
    time = time + start
    for axis in axes:
        if axis.join:
            more = parts[axis.name] - 1
            time = time + np.where(more > 0, start + axis.join * more / threads, 0.0)
    return time


def _share(
    axis: SplitAxis, work: float | Sequence[float], sizes: NDArray[np.int64], parts: NDArray[np.int64], covered: Vector
) -> Vector:
    """The share of the work along an axis that a part has: the mean over the thread with the most work, which covers
    this many parts. Its parts include the short last one only as often as all others."""

    last = axis.extent - (parts - 1) * sizes
    halo = 0.0 if isinstance(work, Sequence) else work
    amounts = np.asarray(work if isinstance(work, Sequence) else np.arange(1, axis.extent + 1) + halo, dtype=np.float64)
    full, short, total = amounts[sizes - 1], amounts[last - 1], axis.extent + halo
    covered = np.maximum(covered, 1)
    whole, rest = np.divmod(covered, parts)
    mean: Vector = (whole * ((parts - 1) * full + short) + rest * full) / covered / total
    return mean


def _loops(order: Sequence[str], parts: Mapping[str, NDArray[np.int64]]) -> list[_Loop]:
    """The loops over tasks, outermost first: the axis, and iterations."""
    loops: list[_Loop] = []
    for at, name in enumerate(order):
        count = parts[name]
        if name in order[:at]:
            count = -(-count // 2)
        elif name in order[at + 1 :]:
            count = np.minimum(count, 2)
        loops.append((name, count))
    return loops


def _reuse(loops: Sequence[_Loop], work: Work) -> NDArray[np.int64] | int:
    """Number of consecutive tasks that need the same part of the work."""
    reuse: NDArray[np.int64] | int = 1
    for name, count in reversed(loops):
        if name in work.axes:
            return reuse
        reuse = reuse * count
    return reuse


def _distinct(loops: Sequence[_Loop], work: Work, run: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of different parts of the work that this many consecutive tasks need."""
    distinct = np.ones(len(run), dtype=np.int64)
    for name, count in reversed(loops):
        if name in work.axes:
            distinct = distinct * np.minimum(run, count)
        run = -(-run // count)
    return distinct


def _foreign(loops: Sequence[_Loop], work: Work, run: NDArray[np.int64]) -> Vector:
    """The fraction of the data that a thread's tasks need and that other threads wrote in the previous kernel."""
    needed, done = np.ones(len(run)), np.ones(len(run))
    for name, count in reversed(loops):
        part = np.minimum(run, count) / count
        needed, done = needed * (part if name in work.axes else 1.0), done * part
        run = -(-run // count)
    return np.maximum(needed - done, 0.0)


def part_numbers(
    task: Index,
    parts: Mapping[str, Index],
    order: Sequence[str] = (),
    named: Callable[[str, Index], Index] = lambda name, value: value,
) -> dict[str, Index]:
    """The number of each axis's part in a task.

    Args:
        order: as in `TaskSplit`; by default that of `parts`.
        named: binds an expression to a name.
    """
    order = order or list(parts)
    numbers: dict[str, Index] = {}
    for at, name in reversed(list(enumerate(order))):
        count = parts[name]
        if name in order[:at] or name in order[at + 1 :]:
            halves = min(int(count), 2)
            count = count // halves if name in order[:at] else halves
        index: Index = 0
        if not (isinstance(count, int) and count == 1):
            index = named(f"{name}_part", task % count)
            task = named("task_left", task // count)
        numbers[name] = numbers[name] + index * (parts[name] // count) if name in numbers else index
    return numbers


# Candidate numbers of parts, and of rounds of tasks per thread, for an axis of unknown length.
_PARTS, _ROUNDS = (1, 2, 3, 4), (1, 2, 3, 4, 6, 8)
_PARTS_BITS, _OTHER_BITS = 24, 3
_UNITS = 1024  # units of work per step


def parts_at_run_time(extent: Index, longest: int, others: Index, cores: int, again: int = 1) -> Index:
    """Number of parts to split an axis into if its length is known only when the kernel runs; a part has
    ceil(extent / parts) steps.

    Among several candidates, the one with the least time: rounds of tasks * (steps of a part + `again`). An int if all
    arguments are ints, otherwise a long expression: bind it to a name (`nest.name_opaque`).

    Args:
        extent: steps of the axis, below 2^24; an int64 expression.
        longest: most steps of a part.
        others: number of tasks for each part of the axis: the parts of all other axes.
        cores: number of cores of the machine.
        again: work that each additional part repeats, in steps: its halo, or its startup.
    """
    return parts_of_two_at_run_time(extent, longest, others, cores, [OtherParts(1, 1)], again)[0]


@dataclass(frozen=True)
class OtherParts:
    """A number of parts of a second axis, and the work of a step of the first one with it, in any unit."""

    parts: int
    step: int


def other_parts(steps: int, cores: int, divided: float, repeated: float) -> list[OtherParts]:
    """Candidate numbers of parts of an axis of known length, chosen when the kernel runs. Its splits divide some of the
    cycles of a step of the first axis, and repeat others."""
    counts = sorted({ceil_div(steps, ceil_div(steps, parts)) for parts in (1, cores // 4 or 1, cores)})
    unit = (divided + repeated) / _UNITS
    return [OtherParts(parts, max(1, round((divided / parts + repeated) / unit))) for parts in counts]


def parts_of_two_at_run_time(
    extent: Index,
    longest: int,
    others: Index,
    cores: int,
    choices: Sequence[OtherParts],
    again: int = 0,
    named: Callable[[str, Index], Index] = lambda name, value: value,
) -> tuple[Index, Index]:
    """`parts_at_run_time` with a second axis, whose number of parts is one of at most eight `choices`; returns both.

    `again` is in units of the work of a step. `named` binds an expression to a name.
    """
    best: Index | None = None
    for number, choice in enumerate(choices if cores > 1 else choices[:1]):
        tasks = others * choice.parts
        rounds = (maximum(count * cores // tasks, 1) for count in (_ROUNDS if cores > 1 else ()))
        for wanted in (*(_PARTS if cores > 1 else _PARTS[:1]), *rounds):
            size = maximum(minimum(ceil_div(extent, wanted), longest), 1)
            parts = maximum(ceil_div(extent, size), 1)
            time = ceil_div(tasks * parts, cores) * (size * choice.step + again)
            rank = named("rank", ((time * (1 << _PARTS_BITS)) + parts) * (1 << _OTHER_BITS) + number)
            best = rank if best is None else named("best", minimum(best, rank))
    assert best is not None
    number = best % (1 << _OTHER_BITS)
    chosen: Index = choices[0].parts
    if isinstance(number, int):
        chosen = choices[number].parts
    else:
        for i, choice in enumerate(choices[1:], 1):
            chosen = tirx.Select(tirx.EQ(number, index(i)), index(choice.parts), expression(chosen))
    return best // (1 << _OTHER_BITS) % (1 << _PARTS_BITS), chosen
