"""The operands of an attention kernel, and the elementwise steps on scores, weights and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.annotations import KIND
from schedules.attention.batched_matrix import BatchedMatrix
from schedules.attention.compute import ADJUSTED, OPERANDS, PRODUCT, RESULT, SCORES, WEIGHTS, guarded_quotient
from schedules.ir.expression import buffers_loaded, constant_int, map_loads, substitute
from schedules.ir.stages import Kernel, Stage, shape_of
from schedules.ir.tir import Expr, Index, structural_map, tirx, tvm

_LEAST_QUERIES = 16  # least number of queries that pays for rounding the keys and values


def attention_stages(kernel: Kernel, kind: str) -> dict[str, Stage] | None:
    """The stages of a kernel of `attention_compute.attention` by name, where it is one of this kind."""
    found = {stage.name: stage for stage in kernel.simple_stages if stage.annotations.get(KIND) == kind}
    needed = (SCORES, ADJUSTED, PRODUCT, RESULT)
    whole = kernel.is_plain and len(found) == len(kernel.stages)
    return found if whole and all(name in found and found[name].store is not None for name in needed) else None


@dataclass(frozen=True, eq=False)
class AttentionParts:
    """Operands, where results go, and the stages that compute one element of others.

    `weights` is None where powers multiply the values, and their sums divide what comes out. `zeros`: the zero points
    of query, key, weights and value; 0 where there are none.
    """

    query: BatchedMatrix
    key: BatchedMatrix
    value: BatchedMatrix
    stored: BatchedMatrix
    scores: Expr
    adjusted: Stage
    weights: Stage | None
    result: Stage
    rounds: bool
    zeros: tuple[int, int, int, int]

    @classmethod
    def of(cls, stages: dict[str, Stage]) -> AttentionParts:
        """The parts of an attention of these stages."""
        (query, query_zero), (key, key_zero) = _factors(stages[SCORES])
        (_, weights_zero), (value, value_zero) = _factors(stages[PRODUCT])
        scores, product, result = (stages[name].store for name in (SCORES, PRODUCT, RESULT))
        assert scores is not None
        assert product is not None
        assert result is not None
        rounds = str(stages[SCORES].annotations.get(OPERANDS)) == "bfloat16"
        [element] = [load for load in stages[RESULT].loads if load.source.same_as(product.buffer)]
        stored = BatchedMatrix(result.buffer, tuple(result.indices), tuple(element.indices), shape_of(product.buffer))
        zeros = query_zero, key_zero, weights_zero, value_zero
        adjusted, weights = stages[ADJUSTED], stages.get(WEIGHTS)
        return cls(query, key, value, stored, scores.buffer, adjusted, weights, stages[RESULT], rounds, zeros)

    @property
    def is_static(self) -> bool:
        """True if all sizes but those of the batch are known."""
        return all(isinstance(size, int) for size in (*self.query.shape[-2:], *self.value.shape[-2:]))

    @property
    def narrow(self) -> bool:
        """True if products run on pairs of bfloat16: where they may, and enough queries share the pairs."""
        return self.rounds and self.is_static and self.query.shape[-2] >= _LEAST_QUERIES

    @property
    def weights_dtype(self) -> str:
        """The type of what multiplies the values."""
        return "float32" if self.weights is None or self.weights.store is None else str(self.weights.store.buffer.dtype)

    def score(self, raw: Expr, place: Sequence[Expr]) -> Expr:
        """The argument of softmax for a raw score (scaled, masked) at a place (*lead, query, key)."""
        stage = self.adjusted
        assert stage.store is not None
        variables = {
            axis.var: point
            for axis in stage.axes
            for var, point in zip(list(stage.store.indices), place, strict=True)
            if axis.var.same_as(var)
        }
        value = map_loads(stage.store.value, lambda load: raw if load.source.same_as(self.scores) else None)
        return substitute(value, variables)

    def weight(self, power: Expr, inverse: Expr) -> Expr:
        """Weight of the values, of a power and 1 / (the sum of its row's powers)."""
        assert self.weights is not None
        assert self.weights.store is not None
        rank = len(self.weights.store.indices)

        def quotient(division: Expr) -> Expr:
            return inverse if isinstance(division.b, tvm.ir.TensorLoad) else division

        value = structural_map(self.weights.store.value, (tirx.Div, quotient))
        return map_loads(value, lambda load: power if len(load.indices) == rank else None)

    def finished(self, product: Expr, total: Expr) -> Expr:
        """Value to store, of a sum of the second product and the sum of its row's powers."""
        assert self.result.store is not None
        if self.weights is not None:
            return map_loads(self.result.store.value, lambda load: product)
        is_guarded = isinstance(self.result.store.value, tirx.Select)
        return guarded_quotient(product, total) if is_guarded else product / total


def _factors(stage: Stage) -> tuple[tuple[BatchedMatrix, int], tuple[BatchedMatrix, int]]:
    """The two operands of a product, in order, each with its zero point."""
    assert stage.store is not None
    *lead, row, column = stage.store.indices
    [summed] = stage.reduction
    *outer, rows, columns = shape_of(stage.store.buffer)
    term = stage.store.value.b

    def factor(expr: Expr, ends: tuple[Expr, Expr], sizes: tuple[Index, Index]) -> tuple[BatchedMatrix, int]:
        [load] = buffers_loaded(expr)
        return BatchedMatrix(load.source, tuple(load.indices), (*lead, *ends), (*outer, *sizes)), _zero_of(expr)

    return (
        factor(term.a, (row, summed.var), (rows, summed.extent)),
        factor(term.b, (summed.var, column), (summed.extent, columns)),
    )


def _zero_of(expr: Expr) -> int:
    """Zero point that is subtracted from an operand."""
    if isinstance(expr, tirx.Sub):
        return int(constant_int(expr.b))
    return -int(constant_int(expr.b)) if isinstance(expr, tirx.Add) else 0
