"""Matmuls of data already rounded to bfloat16, and the rounding.

The rounding is elementwise, so the previous kernel does it as it writes its result: the data then need half the memory
and no extra pass. Two neighbors along the depth are read as one word. The weights are packed as pairs at compile time.

Matmuls of a gated MLP fused into one kernel, act(x gate^T) * (x up^T), with bfloat16 operands.

A panel holds equally many columns of both weights, so that both sums of an element are in one tile and neither matmul's
result is written to memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from schedules.annotations import KIND, SPEC
from schedules.codegen.nest import lanes_of, load, repeat, sequence
from schedules.codegen.parallel import MIN_PARALLEL_BYTES
from schedules.codegen.register_tile import RegisterTile, pieces
from schedules.instructions.dot_products.operation import DOT_BF16, Instruction, Operation
from schedules.instructions.rounding import narrowed
from schedules.ir.expression import buffers_loaded, expression, index, widened
from schedules.ir.stages import Kernel, Stage
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import PanelRule, panel_fields, panel_form
from schedules.matmul.tiling import MatmulSplit, MatmulWorkload, block_rows, row_chunks_at_run_time
from schedules.matmul.writer import MatmulWriter, Tile
from schedules.stages.fused_kernel import FusedKernel, anchor_stages, only_anchors

MATMUL_ROUNDED_BF16 = "matmul-rounded-bf16"
_FEW_ROWS = 4  # up to here rows wait for the weights, which the vector code prefetches
_MAX_TILES = 18  # per task: its rows of the data stay in the L2 cache


def rounded_bf16(data: Tensor) -> Tensor:
    """float32 data rounded to nearest even bfloat16: the bits, as uint16."""
    return te.compute(data.shape, lambda *at: narrowed(data(*at)), name="rounded")


def matmul_rounded_bf16(data: Tensor, packed: Tensor, columns: int, kind: str = MATMUL_ROUNDED_BF16) -> Tensor:
    """Matmul of data (..., depth) returned by `rounded_bf16`, with an even depth, and weights packed by
    `pack.pack_words`: float32 (..., columns). `kind` is the annotation of its rule."""
    width = int(packed.shape[2])
    k = te.reduce_axis((tirx.IntImm("int64", 0), packed.shape[1]), name="k")

    def point(*at: Expr) -> Expr:
        word = packed(tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width))
        first, second = (widened(data(*at[:-1], position)) for position in (2 * k, 2 * k + 1))
        return te.sum(first * DOT_BF16.half(word, 0) + second * DOT_BF16.half(word, 1), axis=k)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="matmul", attrs={KIND: kind})


@dataclass(frozen=True, eq=False)
class Parts:
    """Operands of a matmul whose A is packed in words of two neighbours."""

    form: MatmulForm


class MatmulRoundedBf16(PanelRule[MatmulWorkload, Parts]):
    """Serves the kernels of `matmul_rounded_bf16`."""

    name: ClassVar[str] = MATMUL_ROUNDED_BF16
    few_rows: ClassVar[int] = _FEW_ROWS
    operation: ClassVar[Operation | None] = DOT_BF16

    def workload(self, parts: Parts, machine: Machine) -> MatmulWorkload:
        return MatmulWorkload(**panel_fields(parts.form, "bfloat16"))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(only_anchors(kernel, MATMUL_ROUNDED_BF16))

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Instruction | None = None
    ) -> MatmulWriter:
        return RowsFirstWriter(
            parts.form, fused, machine, rows=rows, vectors=1, pack=False, combine=DOT_BF16, tiles=tiles
        )

    def many(self, parts: Parts, fused: FusedKernel, workload: MatmulWorkload, machine: Machine) -> MatmulWriter | None:
        tiles = self.tiles(workload, machine)
        return None if tiles is None else self.writer(parts, fused, machine, block_rows(workload.rows), tiles)


class RowsFirstWriter(MatmulWriter):
    """Assigns each thread the same rows as in the kernels before and after, whose operands and results are in its
    cache. For prompts this saves more than reading the weights once per thread costs."""

    rows_first: ClassVar[bool] = True
    has_room: ClassVar[bool] = False

    def _threads(self) -> bool | Expr:
        """Use threads even for a single row, which is bound by the memory bandwidth of the weights."""
        if self._weight_bytes() >= MIN_PARALLEL_BYTES:
            return self.machine.cores > 1
        return super()._threads()

    def _split_at_run_time(self, tiles: Expr, others: Sequence[Index]) -> MatmulSplit:
        # The same number of chunks for every core, or one core would compute while others wait.
        return self._named_split(row_chunks_at_run_time(tiles, [], self.machine.cores, maximum=_MAX_TILES))


def parts_of(stages: tuple[Stage, ...] | None) -> Parts | None:
    """The operands of a stage of `matmul_rounded_bf16`, the first one."""
    if stages is None:
        return None
    stage = stages[0]
    depth = next(axis for axis in stage.axes if axis.reduce)
    loads = [load for load in stage.loads if not load.source.same_as(stage.body.buffer)]
    packed = next(load for load in loads if str(load.source.dtype) == "int32")
    data = next(load for load in loads if str(load.source.dtype) == "uint16")
    pair = tirx.BufferLoad(data.source, [*data.indices[:-1], lanes_of(2 * depth.var, 2)])
    form = panel_form(stage, depth, tirx.reinterpret("int32", pair), packed)
    return Parts(replace(form, a=buffers_loaded(form.a)[0]))


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
        data: (..., depth) returned by `rounded_bf16`, with an even depth.
        packed: the weights, as `interleaved` returns them.
        columns: number of columns of each of the two matmuls, a multiple of a panel's.
        activation: one of `GATES`.
    """
    width = int(packed.shape[2])
    product = matmul_rounded_bf16(data, packed, 2 * columns, MATMUL_GATED_BF16)

    def point(*at: Expr) -> Expr:
        position = tirx.floordiv(at[-1], width // 2) * width + tirx.floormod(at[-1], width // 2)
        return GATES[activation](product(*at[:-1], position)) * product(*at[:-1], position + width // 2)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="gated", attrs={KIND: MATMUL_GATED_BF16, SPEC: activation})


class MatmulGatedBf16(MatmulRoundedBf16):
    """Serves the kernels of `matmul_gated_bf16`."""

    name: ClassVar[str] = MATMUL_GATED_BF16

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(only_anchors(kernel, MATMUL_GATED_BF16, 2))

    def fused(self, kernel: Kernel, parts: Parts) -> FusedKernel:
        return FusedKernel(kernel, anchor_stages(kernel, MATMUL_GATED_BF16))

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Instruction | None = None
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
        tiles: Instruction | None,
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
            *leading, _ = self.form.c_indices(at.batch, at.row + i, at.column)
            return self.fused.finish(value, [*leading, first + lane])

        def vectors(i: Expr) -> Stmt:
            return sequence(
                [
                    repeat("lane", lanes, lambda lane, start=start: element(i, start + lane), VECTORIZED)  # type: ignore[misc]
                    for start, lanes in pieces(half, self.lanes)
                ]
            )

        return repeat("i", at.rows, vectors)
