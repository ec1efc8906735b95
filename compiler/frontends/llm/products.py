"""Matmuls with weights and embedding look-ups, in Relax."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.llm.blocks import packed, packed_experts
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.weights import Array, Experts, Linear, LowRank, Matrix, joined, stacked, stacked_experts
from compiler.passes.rewriting.block_weights import BlockWeight, block_product, block_rows, gated_product, gates
from compiler.passes.rewriting.expert_products import Routing, expert_product, expert_rows
from compiler.passes.rewriting.matching import as_constant
from compiler.support.unnamed_file import SpillingAllocator
from schedules.ir.tvm_types import Expr
from schedules.sequence_mixers import Columns

_MAX_IN_MEMORY = 1 << 30  # bytes of weights; the rest go to files, so that a large model need not fit into memory


class Products:
    """Emits the matmuls of one model."""

    def __init__(self, builder: relax.BlockBuilder, options: LanguageModelOptions) -> None:
        self._builder, self._options = builder, options
        self._room = SpillingAllocator(_MAX_IN_MEMORY)
        self.operands: list[Expr] = []  # of `product` except the head, in order
        self.adapter_of_rows: Callable[[Expr], Expr] | None = None  # int64 (n,), for an operand (1, n, depth)
        self.adapted: set[str] = set()  # names of weights that adapters change

    def _packed(self, weight: Matrix, precision: str | None, gram: Array | None = None) -> BlockWeight:
        return packed(weight, precision, gram, empty=self._room.empty)

    def product(self, x: Expr, linear: Linear, *, is_head: bool = False) -> Expr:
        """x @ weight.T + bias: (1, n, depth) -> (1, n, rows)."""
        if is_head:
            weight = self._packed(linear.weight, self._table_precision)
        else:
            gram = self._options.grams[len(self.operands)] if self._options.grams else None
            weight = self._packed(linear.weight, self._options.precision, gram)
            self.operands.append(x)
        result = block_product(self._builder, x, weight, self._activations(weight))
        if linear.changes:
            result = self._builder.emit(R.add(result, self._changed(x, linear.changes)))
        if linear.scale is not None:
            result = self._builder.emit(R.multiply(result, as_constant(linear.scale.astype(np.float32))))
        if linear.bias is None:
            return result
        return self._builder.emit(R.add(result, as_constant(linear.bias.astype(np.float32))))

    def _changed(self, x: Expr, changes: Sequence[LowRank]) -> Expr:
        """Return the low-rank update of each row's adapter, in float32: (1, n, rows)."""
        assert self.adapter_of_rows is not None
        emit, (_, length, depth) = self._builder.emit, list(x.ty.shape)
        numbers, rows = self.adapter_of_rows(x), emit(R.reshape(x, (length, depth)))
        parts = [self._change(rows, numbers, change) for change in changes]
        whole = parts[0] if len(parts) == 1 else emit(R.concat(parts, axis=1))
        return emit(R.reshape(whole, (1, length, sum(change.rows for change in changes))))

    def _change(self, rows: Expr, numbers: Expr, change: LowRank) -> Expr:
        """Return the update of some outputs, 0 if a row's adapter changes none: (n, rows)."""
        emit = self._builder.emit
        if not change.module:
            return emit(R.zeros((rows.ty.shape[0], change.rows), "float32"))
        self.adapted.add(change.module)
        slots = emit(R.take(as_constant(change.slots), numbers, axis=0))
        stored = emit(R.maximum(slots, relax.const(0, "int64")))
        for stack in (change.inner, change.outer):
            each = Experts(tuple(Matrix("F32", one, one.shape[1]) for one in stack))
            weight = packed_experts([each], None, self._room.empty)
            rows = expert_product(self._builder, rows, weight, each.rows, stored, "float32")
        changes = emit(R.expand_dims(emit(R.greater_equal(slots, relax.const(0, "int64"))), 1))
        return emit(R.where(changes, rows, relax.const(0.0, "float32")))

    def products(self, x: Expr, parts: Sequence[Linear]) -> list[Expr]:
        """Return matmuls of one operand; weights with the same storage are one matmul, which is split."""
        results: list[Expr] = []
        for run in stacked(parts):
            results += self._split(self.product(x, joined(run)), [part.weight.rows for part in run])
        return results

    def columns(self, x: Expr, parts: Sequence[Linear]) -> list[Columns]:
        """Like `products`, as columns of matrices (n, ...), without splitting them."""
        results: list[Columns] = []
        for run in stacked(parts):
            product = self.product(x, joined(run))
            shape = list(product.ty.shape.values)
            rows = self._builder.emit(R.reshape(product, (shape[-2], shape[-1])))
            ends = np.cumsum([0, *(part.weight.rows for part in run)])
            results += [Columns(rows, int(end)) for end in ends[:-1]]
        return results

    def heads(self, x: Expr, parts: Sequence[Linear], size: int) -> list[Expr]:
        """Like `products`, each (1, n, heads, size): slices of whole heads are fused into the kernel that reads
        them."""
        results: list[Expr] = []
        for run in stacked(parts):
            product = self.product(x, joined(run))
            ends = [int(end) for end in np.cumsum([0, *(part.weight.rows // size for part in run)])]
            shaped = self._builder.emit(R.reshape(product, (*list(product.ty.shape)[:-1], ends[-1], size)))
            results += (
                [
                    self._builder.emit(R.strided_slice(shaped, axes=[2], begin=[first], end=[end], assume_inbound=True))
                    for first, end in itertools.pairwise(ends)
                ]
                if len(run) > 1
                else [shaped]
            )
        return results

    def gated(self, x: Expr, gate_up: Sequence[Linear], activation: str) -> Expr | None:
        """Return act(gate) * up of two matmuls as one kernel, None if unsupported for the weights."""
        if self._options.activations == "float32" or any(
            part.bias is not None or part.scale is not None or part.changes for part in gate_up
        ):
            return None
        kinds = {part.weight.kind for part in gate_up}
        if self._options.precision != "bfloat16" and not (self._options.precision is None and kinds == {"BF16"}):
            return None
        gate, up = (self._packed(part.weight, self._options.precision) for part in gate_up)
        if not gates(gate, up, activation):
            return None
        self.operands.append(x)
        return gated_product(self._builder, x, (gate, up), activation)

    def experts(self, x: Expr, parts: Sequence[Experts], routing: Routing, *, of_slots: bool) -> list[Expr]:
        """Multiply each slot of a mixture by the weights of its expert, like `products`: each (slots, rows).

        x are the tokens (n, depth), or with `of_slots`, the contents of the slots: (slots, depth).
        """
        results: list[Expr] = []
        for run in stacked_experts(parts):
            weight = packed_experts(run, self._options.precision, self._room.empty)
            columns = sum(part.rows for part in run)
            activations = self._options.activations
            slots = x if of_slots else expert_rows(self._builder, x, routing, weight, activations)
            product = expert_product(self._builder, slots, weight, columns, routing.experts, activations)
            biases = [part.biases for part in run if part.biases is not None]
            if biases:
                rows = R.take(as_constant(np.concatenate(biases, axis=1)), routing.experts, axis=0)
                product = self._builder.emit(R.add(product, self._builder.emit(rows)))
            results += self._split(product, [part.rows for part in run])
        return results

    def of_heads(self, x: Expr, heads: Experts) -> Expr:
        """Multiply each head by its own weight: (1, n, heads, depth) -> (1, n, heads, rows)."""
        emit, (_, length, count, depth) = self._builder.emit, list(x.ty.shape)
        by_head = emit(R.reshape(emit(R.permute_dims(x, [2, 0, 1, 3])), (count * length, depth)))
        weight = packed_experts([heads], self._options.precision, self._room.empty)
        numbers = self._builder.emit_te(_heads_of_slots, x, primfunc_name_hint="heads_of_slots")
        product = expert_product(self._builder, by_head, weight, heads.rows, numbers, self._options.activations)
        product = emit(R.permute_dims(emit(R.reshape(product, (count, 1, length, heads.rows))), [1, 2, 0, 3]))
        return product if heads.biases is None else emit(R.add(product, as_constant(heads.biases)))

    def exact(self, x: Expr, linear: Linear) -> Expr:
        """Like `product`, with weights kept in their stored precision."""
        weight = packed(linear.weight, None)
        result = block_product(self._builder, x, weight, "float32")
        return result if linear.bias is None else self._builder.emit(R.add(result, as_constant(linear.bias)))

    def exact_rows(self, table: Matrix, rows: Expr) -> Expr:
        """Look up rows of a table in its stored precision."""
        return block_rows(self._builder, rows, packed(table, None))

    def _split(self, product: Expr, widths: list[int]) -> list[Expr]:
        """Split a matmul's result along its last axis."""
        if len(widths) == 1:
            return [product]
        ends = [int(end) for end in np.cumsum(widths)[:-1]]
        split = self._builder.emit(R.split(product, ends, axis=-1))
        return [self._builder.emit(relax.TupleGetItem(split, index)) for index in range(len(widths))]

    def table(self, embedding: Matrix) -> BlockWeight:
        """Pack the embedding, for `rows` and, if it is also the head, for `with_table`."""
        return self._packed(embedding, self._table_precision)

    def rows(self, table: BlockWeight, tokens: Expr) -> Expr:
        """Look up entries by token: (1, n) -> (1, n, depth)."""
        return block_rows(self._builder, tokens, table)

    def with_table(self, x: Expr, table: BlockWeight) -> Expr:
        """Multiply by the embedding: (1, n, depth) -> (1, n, entries)."""
        return block_product(self._builder, x, table, self._activations(table))

    def _activations(self, weight: BlockWeight) -> str:
        """Return the other operand's type: bfloat16 for bfloat16 weights, which is twice as fast for prompts."""
        asked = self._options.activations
        return "bfloat16" if asked == "int8" and weight.layout.numbers == "bfloat16" else asked

    @property
    def _table_precision(self) -> str | None:
        """Four bits are too few for the embedding and the head."""
        return "int8" if self._options.precision == "int4" else self._options.precision


def _heads_of_slots(x: te.Tensor) -> te.Tensor:
    """Return the head of each slot of (1, n, heads, depth), grouped by head: int64 (heads * n,)."""
    _, rows, count, _ = x.shape
    return te.compute((count * rows,), lambda slot: tirx.floordiv(slot, rows), name="heads_of_slots")
