"""Attention of 8-bit integers: both products in integers, softmax in float32, weights rounded to 8 bits in between."""

from __future__ import annotations

from typing import ClassVar

from schedules.attention.batched_matrix import BatchedMatrix
from schedules.attention.compute import ATTENTION_INT8
from schedules.attention.pairs import Operand
from schedules.attention.quads import ByteRows, Quads
from schedules.attention.rule import Attention, AttentionWorkload
from schedules.attention.writer import AttentionWriter, BlockRows, Factor, put_in
from schedules.config import Config
from schedules.instructions.products.operation import DOT_U8S8
from schedules.ir.stages import dtype_of
from schedules.ir.tir import Buffer, Expr, Stmt
from schedules.machine import Machine

_BYTES = ("int8", "uint8")


class IntegerAttentionWriter(AttentionWriter):
    """Writes attention whose operands and weights are bytes; sums are int32."""

    dtype: ClassVar[str] = "int32"

    def _prepare(self) -> tuple[list[Stmt], Factor, Factor]:
        parts = self.parts
        query_zero, key_zero, weights_zero, value_zero = parts.zeros
        key, value = (Quads.of(each, self.machine) for each in (parts.key, parts.value))
        dtypes = dtype_of(parts.query.buffer), parts.weights_dtype
        self._zeros = query_zero + DOT_U8S8.shift(dtypes[0]), weights_zero + DOT_U8S8.shift(dtypes[1])
        self._column_zeros = key_zero + key.shift, value_zero + value.shift
        statements: list[Stmt] = []
        factors = []
        for quads, row_zero, zero in zip((key, value), self._zeros, self._column_zeros, strict=True):
            made, begin = quads.begins(row_zero, zero)
            statements += [*quads.made(), *made]
            factors.append(Factor(BatchedMatrix.whole(quads.words), begin))
        of_keys, of_values = factors
        return statements, of_keys, of_values

    def _rows_of(self, rows: int, query: Operand, scores: Buffer) -> BlockRows:
        queries, weights = ByteRows.of("queries", rows, self.depth), ByteRows.of("weights", rows, self.keys)

        of_queries, query_terms = queries.terms(self._column_zeros[0], self.machine)
        of_weights, weight_terms = weights.terms(self._column_zeros[1], self.machine)
        made = [*queries.allocated(), queries.filled(query, 4 * self.lanes), *of_queries, *weights.allocated()]
        return BlockRows(
            made, queries.word, weights.word, put_in(scores), weights.put, of_weights, query_terms, weight_terms
        )

    def _combine(self, total: Expr, a: Expr, b: Expr) -> Expr:
        return DOT_U8S8(total, a, b)


class AttentionInt8(Attention):
    """Serves the kernels of `attention_compute.attention` between 8-bit integers, of known sizes."""

    name: ClassVar[str] = "attention-int8"
    version: ClassVar[int] = 1

    kind: ClassVar[str] = ATTENTION_INT8
    dtypes: ClassVar[tuple[str, ...]] = _BYTES
    writer: ClassVar[type[AttentionWriter]] = IntegerAttentionWriter

    def estimate(self, workload: AttentionWorkload, config: Config, machine: Machine) -> None:
        """None: the estimate of float32 products says nothing of these."""
