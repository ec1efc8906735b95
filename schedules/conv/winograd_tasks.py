"""How the tiles of Winograd's method are shared among tasks, when the kernel runs if sizes are not known before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schedules.codegen.nest import both, name_opaque
from schedules.config import Config
from schedules.conv.dynamic_sizes import parts_of
from schedules.conv.workload import ConvWorkload
from schedules.ir.tir import Stmt, tirx
from schedules.machine import Machine

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Index

_ENOUGH = 4  # tasks per core, for load balance


@dataclass(frozen=True)
class TileCut:
    """Each image's `total` tiles in `columns` are cut into `parts` of `tiles`, the output channels into `chunks` of
    `steps` times the channel blocks of a register tile. Expressions where sizes are not known."""

    columns: Index
    total: Index
    parts: Index
    tiles: Index
    chunks: Index
    steps: Index
    bindings: tuple[Stmt, ...] = ()


def cut_tiles(work: ConvWorkload, counts: Sequence[Index], config: Config, batch: Index, machine: Machine) -> TileCut:
    """The cut of images of `counts` tiles down and across; `config` is that of the rule."""
    most, chunks = config.integer("tiles"), config.integer("chunks")
    steps = work.out_blocks // config.integer("blocks")
    rows, columns = counts
    total = rows * columns
    if not work.is_open:
        return TileCut(columns, total, parts_of(total, most), most, chunks, steps // chunks)
    bindings: list[Stmt] = []

    def named(name: str, value: Expr) -> Expr:
        return name_opaque(name, value, bindings)

    columns, total = named("columns", columns), named("total", total)
    parts, cores = named("least_parts", tirx.max(parts_of(total, most), 1)), machine.cores
    even = tirx.Select(parts >= cores, parts_of(parts, cores) * cores, parts)
    parts = named("parts", even) if cores > 1 else parts
    tiles = named("tiles_each", parts_of(total, parts))
    if chunks > 1:
        tasks = batch * parts
        uneven = both(tasks < _ENOUGH * cores, tasks % cores != 0)
        split = named("chunks", tirx.Select(uneven, tirx.IntImm("int64", chunks), tirx.IntImm("int64", 1)))
        return TileCut(columns, total, parts, tiles, split, named("steps", steps // split), tuple(bindings))
    return TileCut(columns, total, parts, tiles, 1, steps, tuple(bindings))
