"""The split of a kernel's work into tasks, against a simulation of the threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from schedules.ir.expression import substitute
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import tirx, tvm
from schedules.machine import Machine
from schedules.task_split import (
    EXPOSED,
    FEW,
    HELD,
    SHARED_CACHE_RATE,
    START_CYCLES,
    START_CYCLES_OF_THREAD,
    TASK_CYCLES,
    WORTH,
    SplitAxis,
    TaskSplit,
    Work,
    chunks_at_run_time,
    estimated_cycles,
    min_parallel_cycles,
    part_numbers,
    parts_at_run_time,
    pays_at_run_time,
    split_nest,
    split_tasks,
    weighted_cycles,
)


def machine(cores: int) -> Machine:
    return Machine(vector_bits=512, vector_registers=32, l2_bytes=1 << 20, l3_bytes=32 << 20, cores=cores)


def simulated(axes: Sequence[SplitAxis], works: Sequence[Work], sizes: Mapping[str, int], threads: int) -> float:
    """The time of the slowest thread: each takes as many consecutive tasks as the others, the last ones fewer."""
    parts = [ceil_div(axis.extent, sizes[axis.name]) for axis in axes]
    tasks = list(itertools.product(*map(range, parts)))
    own = ceil_div(len(tasks), threads)
    slowest = 0.0
    for first in range(0, len(tasks), own):
        cycles, moved = 0.0, 0.0
        held: dict[int, list[int]] = {}
        for task in tasks[first : first + own]:
            cycles += TASK_CYCLES
            for number, work in enumerate(works):
                share, place = 1.0, []
                for axis, at in zip(axes, task, strict=True):
                    if axis.name in work.axes:
                        size = min(sizes[axis.name], axis.extent - at * sizes[axis.name])
                        halo = work.axes[axis.name]
                        assert not isinstance(halo, Sequence)
                        share *= (size + halo) / (axis.extent + halo)
                        place.append(at)
                cycles += share * work.cycles
                if held.get(number) != place or share * work.bytes > HELD * machine(1).l2_bytes:
                    moved += share * work.bytes
                held[number] = place
        moved /= SHARED_CACHE_RATE
        slowest = max(slowest, max(cycles, moved) + EXPOSED * min(cycles, moved))
    joins = [axis.join * (count - 1) for axis, count in zip(axes, parts, strict=True) if axis.join and count > 1]
    start = START_CYCLES + START_CYCLES_OF_THREAD * min(len(tasks), threads) if threads > 1 else 0
    return slowest + start + sum(start + each / threads for each in joins)


def convolution(images: int, steps: int, rows: int, cycles: float) -> tuple[list[SplitAxis], list[Work]]:
    """Products, copied input with a halo, weights."""
    axes = [SplitAxis("images", images), SplitAxis("channels", steps), SplitAxis("rows", rows)]
    return axes, [
        Work({"images": 0, "channels": 0, "rows": 0}, cycles=cycles),
        Work({"images": 0, "rows": 2}, cycles=cycles / 60, bytes=cycles / 8),
        Work({"channels": 0}, bytes=cycles / 5),
    ]


CASES = {
    "large map": convolution(1, 2, 112, 4e6),
    "small map": convolution(1, 16, 7, 3e6),
    "small map, many channels": convolution(1, 64, 7, 2e6),
    "14 x 14": convolution(1, 8, 14, 3e6),
    "batch": convolution(16, 4, 14, 2e7),
    "little work": convolution(1, 2, 14, 9e3),
    "odd": convolution(3, 5, 13, 1e6),
    "depth": (
        [SplitAxis("panels", 3), SplitAxis("depth", 64, join=300.0)],
        [Work({"panels": 0, "depth": 0}, cycles=2e6, bytes=8e6)],
    ),
    "cache blocks": (
        [SplitAxis("rows", 200, max_steps=12), SplitAxis("panels", 6)],
        [Work({"rows": 0, "panels": 0}, cycles=5e6), Work({"panels": 0}, bytes=2e6)],
    ),
}


@pytest.mark.parametrize("cores", [2, 3, 8, 32])
@pytest.mark.parametrize("case", CASES)
def test_no_other_cut_is_much_faster(case: str, cores: int) -> None:
    axes, works = CASES[case]
    found = split_tasks(axes, works, machine(cores))
    choices = [range(1, (axis.max_steps or axis.extent) + 1) for axis in axes]
    names = [axis.name for axis in axes]

    def time(sizes: Mapping[str, int]) -> float:
        return weighted_cycles(*(simulated(axes, works, sizes, threads) for threads in (cores, FEW)))

    every = [dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*choices)]
    few = [each for each in every if math.prod(ceil_div(axis.extent, each[axis.name]) for axis in axes) <= 4 * cores]
    if found.parallel:
        assert time(found.sizes) <= 1.05 * min(map(time, few), default=math.inf)
    else:
        fastest = min((simulated(axes, works, each, cores) for each in few), default=math.inf)
        assert simulated(axes, works, found.sizes, 1) <= fastest / WORTH


@pytest.mark.parametrize("case", CASES)
def test_parts_cover_the_axes_without_an_empty_one(case: str) -> None:
    axes, works = CASES[case]
    for cores in (1, 2, 7, 128):
        found = split_tasks(axes, works, machine(cores))
        for axis in axes:
            size, parts = found.sizes[axis.name], found.parts[axis.name]
            assert (parts - 1) * size < axis.extent <= parts * size
            assert size <= (axis.max_steps or axis.extent)
        assert found.tasks == math.prod(found.parts.values())
        assert cores > 1 or not found.parallel
        assert found == split_tasks(axes, works, machine(cores))


def test_little_work_stays_on_one_core_and_more_does_not() -> None:
    def of(cycles: float) -> TaskSplit:
        return split_tasks([SplitAxis("rows", 64)], [Work({"rows": 0}, cycles=cycles)], machine(32))

    assert not of(3e3).parallel
    assert of(3e4).parallel


def test_small_maps_are_cut_along_rows_and_channels_together() -> None:
    axes, works = CASES["small map"]
    found = split_tasks(axes, works, machine(32))
    assert min(found.parts["rows"], found.parts["channels"]) > 1
    assert found.serial_cycles / found.cycles > 0.6 * 32


def test_a_cut_that_costs_nothing_serves_other_numbers_of_threads() -> None:
    axes, works = [SplitAxis("rows", 960)], [Work({"rows": 0}, cycles=1e8)]
    found = split_tasks(axes, works, machine(2))
    for threads in (2, 3, 4, 6, 8):
        assert simulated(axes, works, found.sizes, threads) < 1.1 * simulated(axes, works, {"rows": 1}, threads)


def test_an_axis_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="rows"):
        split_tasks([SplitAxis("rows", 0)], [], machine(2))


ORDERS = [("a", "b", "c"), ("c", "b", "a"), ("a", "c", "b", "c"), ("c", "a", "b", "c"), ("b", "a", "b", "c")]


@pytest.mark.parametrize("order", ORDERS)
def test_tasks_in_any_order_are_all_parts_once(order: tuple[str, ...]) -> None:
    parts: dict[str, int] = {"a": 3, "b": 4, "c": 6}
    found = [part_numbers(task, parts, order) for task in range(72)]
    assert sorted((each["a"], each["b"], each["c"]) for each in found) == list(
        itertools.product(*map(range, (3, 4, 6)))
    )
    if order[0] == "c" and order[-1] == "c":
        assert {each["c"] < 3 for each in found[:36]} == {True}


def test_two_threads_find_their_input_in_their_own_cache() -> None:
    """Each thread takes half of the rows of a map with few weights, and half of the channels of one with many."""

    def of(weights: float) -> TaskSplit:
        axes = [SplitAxis("channels", 16), SplitAxis("rows", 56)]
        every = {"channels": 0, "rows": 0}
        works = [
            Work(every, cycles=8e6),
            Work({"rows": 0}, bytes=8e5, passed=8e5),
            Work({"channels": 0}, bytes=weights),
        ]
        orders = [("rows", "channels", "rows"), ("channels", "rows")]
        return split_tasks(axes, works, machine(32), orders=orders)

    assert of(1.5e5).order == ("rows", "channels", "rows")
    assert of(6e6).order == ("channels", "rows")


def test_weights_that_a_thread_reads_again_come_from_the_shared_cache() -> None:
    axes, weights = [SplitAxis("rows", 8)], [Work({}, bytes=4e6, from_memory=True)]
    once, four_times = (estimated_cycles(axes, weights, {"rows": rows}, machine(2), 2) for rows in (4, 1))
    again = 3 * 4e6 / SHARED_CACHE_RATE + EXPOSED * 3 * TASK_CYCLES
    assert four_times - once == pytest.approx(again)


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 32])
def test_the_choice_at_run_time_is_an_expression_of_the_same_value(cores: int) -> None:
    extent, others = tirx.Var("extent", "int64"), tirx.Var("others", "int64")
    chosen = parts_at_run_time(extent, 16, others, cores)
    for known in itertools.product((1, 2, 7, 14, 56, 100, 1000), (1, 3, 16, 40)):
        folded = tvm.sym.Analyzer().simplify(substitute(chosen, dict(zip((extent, others), known, strict=True))))
        parts = parts_at_run_time(known[0], 16, known[1], cores)
        assert isinstance(parts, int)
        assert int(folded.value) == parts
        assert ceil_div(known[0], parts) <= 16
        assert 1 <= parts <= known[0]


def test_parts_at_run_time_share_evenly() -> None:
    random = np.random.default_rng(0)
    for extent, others, cores in zip(
        random.integers(1, 200, 300), random.integers(1, 40, 300), random.integers(2, 40, 300), strict=True
    ):
        parts = parts_at_run_time(int(extent), 200, int(others), int(cores), again=0)
        assert isinstance(parts, int)

        def time(count: int, extent: int = int(extent), others: int = int(others), cores: int = int(cores)) -> int:
            return ceil_div(count * others, cores) * ceil_div(extent, count)

        minimum = min(time(count) for count in range(1, extent + 1))
        assert time(parts) <= max(1.25 * minimum, minimum + 1)


@pytest.mark.parametrize("cores", [1, 2, 32])
def test_a_dynamic_amount_of_work_starts_threads_where_they_pay(cores: int) -> None:
    amount, described = tirx.Var("amount", "int64"), machine(cores)
    minimum = int(min_parallel_cycles(cores)) if cores > 1 else 1 << 40
    condition = pays_at_run_time(amount, 10.0, described)
    for steps in (1, minimum // 10 - 1, minimum // 10 + 1, 1 << 30):
        decided = condition
        if not isinstance(condition, bool):
            with_steps = substitute(condition, {amount: tirx.IntImm("int64", steps)})
            decided = bool(int(tvm.sym.Analyzer().simplify(with_steps)))
        assert decided == (cores > 1 and steps * 10 >= minimum)
        assert pays_at_run_time(steps, 10.0, described) == decided


@pytest.mark.parametrize("cores", [2, 8, 32, 128])
@pytest.mark.parametrize("outer", [[], [1], [3], [33], [2, 8], [64, 100], [5, 7, 1]])
@pytest.mark.parametrize("run", [1, 7, 1000])
def test_a_nest_gives_each_core_its_share(cores: int, outer: list[int], run: int) -> None:
    """The busiest core has at most a seventh more than its share, unless all loops are split already."""
    cycles = 100 * min_parallel_cycles(cores)
    found = split_nest(outer, machine(cores), cycles, run)
    assert found.run in {ceil_div(run, parts) for parts in range(1, run + 1)}
    tasks = math.prod(outer[: found.fused]) * ceil_div(run, found.run)
    if found.run < run:
        assert all(extent == 1 for extent in outer[found.fused :])
    every = math.prod(outer) * run
    busiest = ceil_div(tasks, cores) * math.prod(outer[found.fused :]) * found.run / every
    assert busiest <= max(8 / 7 / cores, 1.01 * ceil_div(every, cores) / every)


def test_few_loops_of_a_nest_are_fused() -> None:
    assert split_nest([64, 1600], machine(2)).fused == 1
    assert split_nest([64], machine(32), run=4).run > 1
    assert split_nest([1], machine(32)).fused == 0
    size = tirx.Var("n", "int64")
    assert split_nest([size], machine(8)).fused == 1
    assert split_nest([size, 128], machine(8)).fused == 2
    assert chunks_at_run_time(machine(8)) % 8 == 0


def test_more_threads_need_more_work() -> None:
    cores = [2, 8, 32, 128]
    for count in cores:
        minimum = min_parallel_cycles(count)
        for cycles, threads_pay in ((1.1 * minimum, True), (0.5 * minimum, False)):
            tasks, work = [SplitAxis("tasks", count)], [Work({"tasks": 0}, cycles)]
            time = estimated_cycles(tasks, work, {"tasks": 1}, machine(count), count)
            assert time < cycles if threads_pay else time > 0.85 * cycles
    assert min_parallel_cycles(128) > 2 * min_parallel_cycles(2)
