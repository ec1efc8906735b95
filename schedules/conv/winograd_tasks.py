"""Distribution of Winograd tiles over tasks, computed at run time for dynamic sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.codegen.nest import name_opaque
from schedules.config import Config
from schedules.conv.dynamic_sizes import parts_of
from schedules.conv.winograd_tiling import CHANNELS, IMAGES, TILES, Register, transform_cycles, winograd_cut
from schedules.conv.winograd_transforms import edge_of
from schedules.conv.workload import WinogradWorkload
from schedules.cuts import Cut, other_parts, parts_of_two_at_run_time, pays_at_run_time
from schedules.ir.tir import Expr, Index, Stmt
from schedules.machine import Machine

_STEP = 4  # tiles that hide the latency of a multiply-add


@dataclass(frozen=True)
class TileCut:
    """Each image's `total` tiles in `columns` are split into `parts` of `tiles`, and the output channels into `chunks`
    of `steps` register tiles. Expressions for dynamic sizes.

    Attributes:
        order: order of the loop over tasks, as in `Cut`.
        parallel: threads share the tasks.
        transforms: the tasks that transform the input before those of the products, if not each of these its own.
    """

    columns: Index
    total: Index
    parts: Index
    tiles: Index
    chunks: Index
    steps: Index
    order: Sequence[str]
    parallel: bool | Expr
    bindings: tuple[Stmt, ...] = ()
    transforms: Cut | None = None


def cut_tiles(
    work: WinogradWorkload, counts: Sequence[Index], config: Config, batch: Index, machine: Machine
) -> TileCut:
    """Split images of `counts` tiles (vertically, horizontally) into tasks; `config` is that of the rule."""
    rows, columns = counts
    if work.is_open:
        return _cut_open(work, rows, columns, config, batch, machine)
    register = Register(*(config.integer(name) for name in ("blocks", "pixels", "tiles", "chunks")))
    whole = winograd_cut(work, work.tile, register, machine)
    found = whole.products
    tiles, channels = (found.parts[TILES], found.sizes[TILES]), (found.parts[CHANNELS], found.sizes[CHANNELS])
    parallel = found.shared(batch, machine)
    return TileCut(columns, rows * columns, *tiles, *channels, found.order, parallel, transforms=whole.transforms)


def _cut_open(
    work: WinogradWorkload, rows: Index, columns: Index, config: Config, batch: Index, machine: Machine
) -> TileCut:
    bindings: list[Stmt] = []

    def named(name: str, value: Index) -> Index:
        return name_opaque(name, value, bindings)

    columns, total = named("columns", columns), named("total", rows * columns)
    steps = work.out_blocks // config.integer("blocks")
    edge = edge_of(work.tile, work.strides[0])
    spread = work.in_blocks * transform_cycles(edge, edge)
    products = work.out_blocks * (edge * edge * work.channels / machine.fma_ports + transform_cycles(edge, work.tile))
    choices = other_parts(steps, machine.cores, products, spread)
    most = config.integer("tiles")
    step = min(most, _STEP)
    extent = named("tile_steps", parts_of(total, step))
    parts, chunks = parts_of_two_at_run_time(extent, most // step, batch, machine.cores, choices, named=named)
    parts, chunks = named("parts", parts), named("chunks", chunks)
    tiles = named("tiles_each", parts_of(extent, parts) * step)
    each = named("steps_each", parts_of(steps, chunks))
    parallel = pays_at_run_time(named("all_tiles", batch * total), products + spread, machine)
    order = (IMAGES, TILES, CHANNELS)
    return TileCut(columns, total, parts, tiles, chunks, each, order, parallel, tuple(bindings))
