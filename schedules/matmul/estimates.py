"""Estimated costs of configs of the matmul rule."""

from __future__ import annotations

from schedules.config import Config
from schedules.estimate import Estimate, tail
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from schedules.matmul.tiling import MatmulWorkload, tile_cost


def matmul_estimate(work: MatmulWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimated cost of a matmul."""
    lanes = machine.lanes(work.dtype)
    rows = config.integer("rows")
    vectors = work.width // lanes if work.layout == "panels" and work.width >= lanes else config.integer("vectors")
    batch, m, n, k = (max(each, 1) for each in (work.batch, work.rows, work.columns, work.depth))
    cycles = batch * k * tile_cost(m, n, (rows, vectors), machine, lanes)
    panels = ceil_div(n, vectors * lanes)
    depth = int(config.get("depth", 0)) or k
    panel_bytes = depth * vectors * lanes * 4
    moved = float(batch * (k * n * 4 + m * k * 4 * (1 if m * k * 4 < machine.l2_bytes / 2 else panels)))
    if config.get("pack"):
        cycles += batch * k * panels * vectors * 4
    if depth < k:
        cycles += batch * m * panels * vectors * 2 * (k / depth)
    tiles = ceil_div(m, rows)
    wanted = max(1, ceil_div(4 * machine.cores, panels * batch))
    chunks = min(wanted, tiles)
    return Estimate(cycles, moved, batch * panels * chunks, panel_bytes, rows * vectors, rows * vectors, tail(m, rows))
