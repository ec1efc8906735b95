"""Matmuls of a gated MLP fused into one kernel, act(x gate^T) * (x up^T), with bfloat16 operands.

A panel holds as many columns of the one weight as of the other, so that both sums of an element are in one tile and
neither product is written to memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from schedules.annotations import KIND, SPEC
from schedules.codegen.nest import expression, load, repeat, sequence
from schedules.codegen.register_tile import RegisterTile, pieces
from schedules.instructions.products.operation import DOT_BF16
from schedules.instructions.products.product import Product
from schedules.ir.expression import index
from schedules.ir.stages import Kernel
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.rounded_bf16 import MatmulRoundedBf16, Parts, RowsFirstWriter, matmul_rounded_bf16, parts_of
from schedules.matmul.tile import Tile
from schedules.matmul.writer import MatmulWriter
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

MATMUL_GATED_BF16 = "matmul-gated-bf16"


def _number(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _gelu(x: Expr) -> Expr:
    return x * (_number(0.5) + tirx.erf(x * _number(math.sqrt(0.5))) * _number(0.5))


def _gelu_tanh(x: Expr) -> Expr:
    inner = x * _number(math.sqrt(2 / math.pi)) * (_number(1.0) + x * x * _number(0.044715))
    return x * _number(0.5) * (_number(1.0) + tirx.tanh(inner))


GATES: dict[str, Callable[[Expr], Expr]] = {
    "silu": lambda x: x * tirx.sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: tirx.max(x, _number(0.0)),
}
"""Activations of the gate by name."""


def interleaved(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Interleave two weights packed by `pack.pack_words` in full panels into one, with half a panel of each per
    panel."""
    half = gate.shape[2] // 2
    panels = [np.concatenate([gate[..., part], up[..., part]], -1) for part in (slice(half), slice(half, None))]
    return np.ascontiguousarray(np.stack(panels, 1).reshape(-1, *gate.shape[1:]))


def matmul_gated_bf16(data: Tensor, packed: Tensor, columns: int, activation: str) -> Tensor:
    """act(x gate^T) * (x up^T), float32 (..., columns).

    Args:
        data: (..., depth), of an even depth, that `rounded_bf16` returned.
        packed: the weights, as `interleaved` returns them.
        columns: number of columns of each of the two matmuls, a multiple of those of a panel.
        activation: one of `GATES`.
    """
    width = int(packed.shape[2])
    product = matmul_rounded_bf16(data, packed, 2 * columns, MATMUL_GATED_BF16)

    def point(*at: Expr) -> Expr:
        place = tirx.floordiv(at[-1], width // 2) * width + tirx.floormod(at[-1], width // 2)
        return GATES[activation](product(*at[:-1], place)) * product(*at[:-1], place + width // 2)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="gated", attrs={KIND: MATMUL_GATED_BF16, SPEC: activation})


class MatmulGatedBf16(MatmulRoundedBf16):
    """Serves the kernels of `matmul_gated_bf16`."""

    name: ClassVar[str] = "matmul-gated-bf16"
    version: ClassVar[int] = 1

    def parts(self, kernel: Kernel) -> Parts | None:
        stages = anchor_stages(kernel, MATMUL_GATED_BF16)
        return parts_of(stages[0]) if len(stages) == 2 and kernel.is_plain else None

    def fused(self, kernel: Kernel, parts: Parts) -> FusedKernel:
        return FusedKernel(kernel, anchor_stages(kernel, MATMUL_GATED_BF16))

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Product | None = None
    ) -> MatmulWriter:
        gate = GATES[str(fused.anchors[1].annotations[SPEC])]
        return _Writer(parts, fused, machine, rows, gate, tiles)


class _Writer(RowsFirstWriter):
    """Multiplies the halves of a tile before storing it."""

    def __init__(
        self,
        parts: Parts,
        fused: FusedKernel,
        machine: Machine,
        rows: int,
        gate: Callable[[Expr], Expr],
        tiles: Product | None,
    ) -> None:
        super().__init__(parts.form, fused, machine, rows=rows, vectors=1, pack=False, combine=DOT_BF16, tiles=tiles)
        self._gate = gate

    def _finish(self, tile: RegisterTile, at: Tile) -> list[Stmt]:
        return self._finish_copy(tile, at)

    def _finish_rows(self, sums: Buffer, at: Tile) -> Stmt:
        half = at.width // 2
        first = tirx.FloorDiv(expression(at.column), index(2))

        def element(i: Expr, lane: Expr) -> Stmt:
            value = self._gate(load(sums, i, lane)) * load(sums, i, lane + half)
            *lead, _ = self.form.c_indices(at.batch, at.row + i, at.column)
            return self.fused.finish(value, [*lead, first + lane])

        def vectors(i: Expr) -> Stmt:
            return sequence(
                [
                    repeat("lane", lanes, lambda lane, start=start: element(i, start + lane), VECTORIZED)  # type: ignore[misc]
                    for start, lanes in pieces(half, self.lanes)
                ]
            )

        return repeat("i", at.rows, vectors)
