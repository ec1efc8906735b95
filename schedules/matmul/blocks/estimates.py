"""Single-core cycles of matmuls with block-quantized weights, from instruction counts; nothing is measured."""

from __future__ import annotations

from schedules.instructions.products.amx import COLUMNS, ROWS
from schedules.instructions.products.table import dot_products
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from schedules.matmul.blocks.layout import PANEL, QUAD, BlockFormat

_UNPACKING = 1.5  # to unpack a vector of words of a panel
_SCALING = 3.0  # instructions for a vector of a unit's sums: conversion, product, multiply-add
_ROWS_OF_A_PANEL = {"tiles": 256, "vectors": 4}  # by which a panel is unpacked once
_ACROSS_LINES = 1.5  # loads of a row of 32 bytes: every other one lies across two cache lines
_TILE_MARGIN = 1.25  # over what ports allow


def block_cycles(
    rows: int, columns: int, depth: int, layout: BlockFormat, machine: Machine, *, in_tiles: bool
) -> float:
    """Cycles of a matmul of int8-quantized rows."""
    units = ceil_div(columns, PANEL) * ceil_div(depth, layout.unit)
    whole = rows // ROWS if in_tiles else 0
    left = rows - whole * ROWS
    cycles = whole * (PANEL // COLUMNS) * _tile_cycles(layout, machine) + left * _row_cycles(layout, machine)
    words = layout.unit // QUAD * ceil_div(PANEL, machine.lanes("int32")) * _UNPACKING
    panels = ceil_div(whole * ROWS, _ROWS_OF_A_PANEL["tiles"]) + ceil_div(left, _ROWS_OF_A_PANEL["vectors"])
    return units * (cycles + panels * words / machine.fma_ports)


def _tile_cycles(layout: BlockFormat, machine: Machine) -> float:
    """Cycles of a tile per unit: the maximum of its loads (data, weights, sums, scales) and the arithmetic that applies
    scales."""
    scaled = _scaling(layout)
    loads = ROWS * _ACROSS_LINES + layout.unit // QUAD + ROWS * (scaled - 1)
    return _TILE_MARGIN * max(loads / machine.load_ports, ROWS * scaled / machine.fma_ports, float(ROWS))


def _row_cycles(layout: BlockFormat, machine: Machine) -> float:
    """Cycles of a row by a panel in vector registers, per unit."""
    product = next(iter(dot_products(machine, "uint8", "int8")), None)
    rate = 1.0 if product is None else product.rate_on(machine)
    vectors = ceil_div(PANEL, machine.lanes("float32"))
    return vectors * (layout.unit / rate + _scaling(layout)) / machine.fma_ports


def _scaling(layout: BlockFormat) -> float:
    return _SCALING + 2 * layout.zeros + layout.minimum
