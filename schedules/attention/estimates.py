"""Estimated costs of configs of the attention rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedules.config import Config
from schedules.estimate import Estimate, tail
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from schedules.matmul.tiling import tile_cost

if TYPE_CHECKING:
    from schedules.attention.rule import AttentionWorkload


def attention_estimate(work: AttentionWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimate of attention."""
    rows = config.integer("rows")
    batch, queries, keys = (max(each, 1) for each in (work.batch, work.queries, work.keys))
    lanes = machine.lanes(work.dtype)
    blocks = ceil_div(queries, rows)
    cycles = batch * (
        work.depth * tile_cost(queries, keys, (rows, 2), machine, lanes)
        + keys * tile_cost(queries, work.columns, (rows, 2), machine, lanes)
        + queries * keys / lanes * 12
    )
    moved = float(batch * blocks * keys * (work.depth + work.columns) * 4)
    return Estimate(cycles, moved, batch * blocks, rows * keys * 4.0, rows * 2, rows * 2, tail(queries, rows))
