"""Maximum and average pooling in the blocked layout, over windows and over whole images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

from schedules.codegen.nest import (
    allocate,
    broadcast,
    grid,
    lanes_of,
    load,
    sequence,
    splat,
    split_repeat,
    store,
    tasks_loop,
    vectorized,
)
from schedules.config import Config
from schedules.conv import compute as conv_compute
from schedules.conv.compute import GLOBAL_POOL, POOL, share_of_image, window_count
from schedules.conv.dynamic_sizes import Sizes, open_repeat
from schedules.conv.window import WindowNest, WindowRule
from schedules.conv.workload import PoolWorkload
from schedules.cuts import CutAxis, Work, cut
from schedules.ir.stages import Kernel
from schedules.ir.tir import Expr, Index, PrimFunc, Stmt, tirx
from schedules.ir.widening import number
from schedules.machine import Machine, dtype_bits
from schedules.rule import CpuRule, Priority
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

_OPEN_SIZE = 56  # assumed size of dynamic dimensions
_CHAINS = 8  # independent sums of a global pooling, to hide the latency of an addition


def _larger(total: Expr, value: Expr) -> Expr:
    """NaN-propagating maximum: a comparison with NaN selects the second operand, so only `value` needs checking."""
    larger = tirx.max(value, total)
    return tirx.Select(tirx.isnan(value), value, larger) if "float" in str(total.ty.dtype) else larger


def _match(kernel: Kernel, kind: str) -> PoolWorkload | None:
    stages = anchor_stages(kernel, kind)
    work = PoolWorkload.from_annotation(stages[0].annotations) if stages else None
    return work if work is not None and len(stages) == (1 if work.mode == "max" else 2) else None


class Pooling(WindowRule[PoolWorkload]):
    """Pooling over windows."""

    name: ClassVar[str] = POOL

    def match(self, kernel: Kernel, machine: Machine) -> PoolWorkload | None:
        return _match(kernel, POOL)

    def nest(self, fused: FusedKernel, workload: PoolWorkload, config: Config, machine: Machine) -> PoolNest:
        return PoolNest(fused, workload, config)


class PoolNest(WindowNest):
    """Maxima, or sums divided by the window size."""

    work: PoolWorkload

    def start_value(self) -> float:
        return conv_compute.lowest(self.work.dtype) if self.work.mode == "max" else 0.0

    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        return _larger(total, value) if self.work.mode == "max" else total + value

    def scale(self, point: Sequence[Expr | int]) -> Expr | None:
        if self.work.mode == "max":
            return None
        return tirx.const(1.0, self.work.dtype) / window_count(self.work, point, self.sizes.spatial, self.sizes.before)


class GlobalPooling(CpuRule[PoolWorkload]):
    """Global pooling without knobs: one pass over the image, several accumulators at a time."""

    name: ClassVar[str] = GLOBAL_POOL
    priority: ClassVar[int] = Priority.BLOCKED

    def match(self, kernel: Kernel, machine: Machine) -> PoolWorkload | None:
        return _match(kernel, GLOBAL_POOL)

    def apply(self, kernel: Kernel, workload: PoolWorkload, config: Config, machine: Machine) -> PrimFunc:
        fused = FusedKernel(kernel, anchor_stages(kernel, GLOBAL_POOL))
        data = fused.operand(fused.anchors[0], workload.rank + 3)
        return fused.function(_global_nest(fused, data, workload, machine), machine)


def _global_nest(fused: FusedKernel, data: Expr, work: PoolWorkload, machine: Machine) -> Stmt:
    lanes = work.block
    every = lanes_of(0, lanes)
    sizes = Sizes.of(work, data, fused.result)
    width = sizes.spatial[-1]
    chains = min(width, _CHAINS) if isinstance(width, int) else _CHAINS
    is_max = work.mode == "max"
    start = conv_compute.lowest(work.dtype) if is_max else 0.0

    def join(total: Expr, value: Expr) -> Expr:
        return _larger(total, value) if is_max else total + value

    def task(place: Index) -> Stmt:
        image, block = place // work.out_blocks, place % work.out_blocks
        sums, allocation = allocate("sums", (chains, lanes), work.dtype, "local")

        def add(outer: Sequence[Expr], first: Index, count: int) -> Stmt:
            return sequence(
                [
                    store(
                        sums,
                        join(
                            load(sums, i, every), number(load(data, image, block, *outer, first + i, every), work.dtype)
                        ),
                        i,
                        every,
                    )
                    for i in range(count)
                ]
            )

        def row(outer: list[Expr]) -> Stmt:
            cut = split_repeat if isinstance(width, int) else open_repeat
            return cut("x", width, chains, lambda first, count: add(outer, first, count))

        clear = [store(sums, splat(start, work.dtype, lanes), i, every) for i in range(chains)]
        names = [f"y{i}" for i in range(work.rank - 1)]
        total = load(sums, 0, every)
        for i in range(1, chains):
            total = join(total, load(sums, i, every))
        if not is_max:
            total = total * broadcast(share_of_image(sizes.spatial, work.dtype), lanes)
        origin = [0] * work.rank
        return sequence(
            allocation,
            clear,
            grid(names, sizes.spatial[:-1], row),
            store(sums, total, 0, every),
            vectorized("lane", lanes, lambda lane: fused.finish(load(sums, 0, lane), [image, block, *origin, lane])),
        )

    batch = data.ty.shape[0] if work.batch == 0 else work.batch
    vectors = float(max(work.batch, 1) * work.out_blocks * prod(size or _OPEN_SIZE for size in work.spatial))
    read = vectors * lanes * dtype_bits(work.source_dtype) / 8
    axes = [CutAxis("images", max(work.batch, 1), most=1), CutAxis("blocks", work.out_blocks, most=1)]
    found = cut(axes, [Work({"images": 0, "blocks": 0}, cycles=vectors, bytes=read)], machine)
    return sequence(sizes.bindings, tasks_loop("task", batch * work.out_blocks, task, found.shared(batch, machine)))
