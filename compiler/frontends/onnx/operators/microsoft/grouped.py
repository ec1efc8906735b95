"""com.microsoft: GroupQueryAttention, as in exported language models."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import limited, require, require_entries, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, refuse_unusual
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.structure import declared_size
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Runtime, tensor_shape
from compiler.passes.rewriting.state_writes import append_rows, placed, write_rows
from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.ir.tvm_types import Expr

_KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _LENGTHS, _TOTAL, _COSINES, _SINES, _POSITIONS, _BIAS, _SINK = range(1, 12)
_LAST_INPUT = _SINK
_ROWS = 2  # the row axis of a cache


@converter("GroupQueryAttention", domain=DOMAIN)
def group_query_attention(context: NodeContext) -> list[Expr]:
    """Causal attention of many query heads to few key heads, with a cache and rotary positions.

    Inputs: query (or query, key and value packed), key, value, past key and value (batch, heads, past, size), the last
    position of each sample, the total length, cosines and sines, positions, a bias of the scores, and additional
    softmax scores per head without a value (with only `smooth_softmax`: 0). The cache may be longer than its contents:
    new entries are appended to each sample. A cache declared with equal sizes before and after is one buffer, of which
    only the new entries are written.
    """
    _refuse_variants(context)
    return _Grouped(context).outputs()


def _refuse_variants(context: NodeContext) -> None:
    for name, usual in (("kv_cache_bit_width", 0), ("qk_output", 0), ("causal", 1)):
        if context.attribute(name, usual) not in (usual, -1):
            context.refuse(f"{name}={context.attribute(name, usual)} is not supported")
    refuse_unusual(context, sliding_window_cache=0)
    for index in range(_LAST_INPUT + 1, len(context.inputs)):
        if context.has_input(index):
            context.refuse(f"its input {index} is not supported")
    if context.output_used(3):
        context.refuse("its output 3 is not computed")


class _Grouped:
    """One node, with its heads, lengths and positions."""

    def __init__(self, context: NodeContext) -> None:
        self.context, self.op = context, Composer(context)
        self.heads = int(context.required_attribute("num_heads"))
        self.key_heads = int(context.required_attribute("kv_num_heads"))
        self.query, self.key, self.value = self._parts()
        self.batch, self.length = context.shape(0)[0], context.shape(0)[1]
        self.past: Dim = context.shape(_PAST_KEY)[2] if context.has_input(_PAST_KEY) else 0
        (self.total,) = context.shape_values(_TOTAL)
        self.is_shared = self._is_shared()
        self.capacity = self.past if self.is_shared else context.arithmetic.maximum(self.past, self.total)
        self._check_sizes()
        self.starts = self._starts()

    def outputs(self) -> list[Expr]:
        """Return [result, present key, present value]."""
        context = self.context
        query, key = self.query, self.key
        if context.attribute("do_rotary", 0):
            query, key = self._rotated(query), self._rotated(key)
        keys = self._with_past(key, _PAST_KEY)
        values = self._with_past(self.value, _PAST_VALUE, tensor_shape(keys.expr)[2])
        window = int(context.attribute("local_window_size", -1))
        call = cached_attention(
            context.block_builder,
            query,
            keys.expr,
            values.expr,
            AttentionOptions(
                position=self.starts,
                scale=float(context.attribute("scale", 0.0)) or None,
                window=window if window > 0 else None,
                softcap=float(context.attribute("softcap", 0.0)),
                bias=context.input(_BIAS) if context.has_input(_BIAS) else None,
                sinks=self._sinks(),
            ),
        )
        result = context.emit(call)
        *outer, heads, size = tensor_shape(result)
        merged = context.reshape(result, [*outer, heads * size])
        return [context.runtime(merged, context.dtype(0)), keys, values]

    def _parts(self) -> list[Expr]:
        """Return query, key and value as (batch, length, heads, size)."""
        context, op = self.context, self.op
        width = context.shape(0)[2]
        if not isinstance(width, int):
            context.refuse("the size of the heads is not known when compiling")
        counts = [self.heads, self.key_heads, self.key_heads]
        if context.has_input(_KEY) and context.has_input(_VALUE):
            parts: list[Expr] = [context.value(index) for index in (0, _KEY, _VALUE)]
        else:
            size = width // sum(counts)
            parts = op.outputs(3, "Split", context.value(0), int64s(*(count * size for count in counts)), axis=2)
        return [self._heads_apart(part, count) for part, count in zip(parts, counts, strict=True)]

    def _heads_apart(self, part: Expr, count: int) -> relax.Expr:
        """(batch, length, width) or (batch, heads, length, size) -> (batch, length, heads, size)."""
        context, shape = self.context, part.shape
        expr = context.importer.builder.materialize(part)
        if len(shape) == 4:
            return context.emit(R.permute_dims(expr, [0, 2, 1, 3]))
        if not isinstance(shape[2], int) or shape[2] % count:
            context.refuse(f"{count} heads do not divide a width of {shape[2]}")
        return context.reshape(expr, [*shape[:2], count, shape[2] // count])

    def _sinks(self) -> relax.Expr | None:
        """Return an additional score per head that has no value, float32 (heads,)."""
        context = self.context
        if context.has_input(_SINK):
            require_shape(context, context.shape(_SINK), [self.heads], "the sinks of the heads")
            return cast(context, context.input(_SINK), "float32")
        if context.attribute("smooth_softmax", 0) in (0, -1):
            return None
        return relax.const(np.zeros(self.heads, np.float32))

    def _is_shared(self) -> bool:
        """True if past and present are declared as one buffer: model inputs and outputs of equal sizes."""
        graph, node = self.context.importer.model.proto.graph, self.context.node
        if self.context.scope.depth or not self.context.has_input(_PAST_KEY):
            return False
        declared = {
            each.name: [declared_size(size) for size in each.type.tensor_type.shape.dim]
            for each in (*graph.input, *graph.output)
        }
        names = [(node.input[_PAST_KEY], node.output[1]), (node.input[_PAST_VALUE], node.output[2])]
        pairs = [(declared.get(past), declared.get(present)) for past, present in names]
        return all(past and None not in past and past == present for past, present in pairs)

    def _check_sizes(self) -> None:
        """Check that keys, values, lengths and the bias fit the queries."""
        context = self.context
        for name, part in (("the key", self.key), ("the value", self.value)):
            require_shape(context, tensor_shape(part)[:3], [self.batch, self.length, self.key_heads], name)
        require(context, context.arithmetic.product(context.shape(_LENGTHS)), "equal", self.batch)
        longest = context.arithmetic.add(self.past, self.length)
        require_values(context, _LENGTHS, 0, longest)
        require_values(context, _TOTAL, 1, context.arithmetic.add(longest, 1))
        if context.has_input(_BIAS):
            sample, heads, rows, length = context.shape(_BIAS)
            require(context, sample, "broadcast", self.batch)
            require(context, self.batch, "at least", sample)
            require(context, self.heads, "at least", heads)
            require(context, rows, "at least", self.length)
            require_entries(context, length, self.capacity)

    def _starts(self) -> relax.Expr:
        """Return the number of valid cache entries of each sample, int64 (batch,); 0 if all tokens are new."""
        length, total = expression(self.length), expression(self.total)

        def starts(lengths: te.Tensor, new: Expr, all_of_them: Expr) -> te.Tensor:
            def start(*indices: Expr) -> Expr:
                before = limited(limited(lengths(*indices), -1, all_of_them) + 1 - new, 0, all_of_them)
                return tirx.Select(new == all_of_them, tirx.const(0, "int64"), before)

            return te.compute(lengths.shape, start, name="starts")

        lengths = self.op("Reshape", self.context.value(_LENGTHS), int64s(-1))
        expr = self.context.importer.builder.materialize(lengths)
        return self.context.emit_te(starts, expr, length, total, primfunc_name_hint="cache_starts")

    def _rotated(self, tensor: relax.Expr) -> relax.Expr:
        """Rotate the pairs of each head's first elements by the angles of its position, in one kernel."""
        context = self.context
        interleaved = bool(context.attribute("rotary_interleaved", 0))
        tables = [context.input(index) for index in (_COSINES, _SINES)]
        self._check_tables(tensor)
        position_tensors = [context.input(_POSITIONS)] if context.has_input(_POSITIONS) else [self.starts]

        def rotated(x: te.Tensor, cosines: te.Tensor, sines: te.Tensor, positions: te.Tensor) -> te.Tensor:
            half = cosines.shape[1]

            def wide(value: Expr) -> Expr:
                return value if x.dtype == "float32" else tirx.Cast("float32", value)

            def element(b: Expr, i: Expr, h: Expr, d: Expr) -> Expr:
                at = positions[b, i] if len(positions.shape) == 2 else positions[b] + i
                row = limited(at, 0, cosines.shape[0] - 1)
                pair = tirx.min(d // 2 if interleaved else d % half, half - 1)
                first = d % 2 < 1 if interleaved else d < half
                step = 1 if interleaved else half
                other = tirx.if_then_else(first, -wide(x[b, i, h, d + step]), wide(x[b, i, h, d - step]))
                turned = wide(x[b, i, h, d]) * wide(cosines[row, pair]) + other * wide(sines[row, pair])
                turned = turned if x.dtype == "float32" else tirx.Cast(x.dtype, turned)
                return tirx.if_then_else(d < 2 * half, turned, x[b, i, h, d])

            return te.compute(x.shape, element, name="rotated")

        return context.emit_te(rotated, tensor, *tables, *position_tensors, primfunc_name_hint="rotate")

    def _check_tables(self, tensor: relax.Expr) -> None:
        """Check that cosines and sines have equal shapes no wider than a head, and that given positions are within
        them."""
        context, size = self.context, tensor_shape(tensor)[3]
        rows, half = context.shape(_COSINES)
        require_shape(context, context.shape(_SINES), [rows, half], "the sines")
        if not isinstance(half, int) or 2 * half > size:
            context.refuse(f"tables of {half} columns for heads of size {size}")
        if context.has_input(_POSITIONS):
            require_shape(context, context.shape(_POSITIONS), [self.batch, self.length], "the positions")
            require_values(context, _POSITIONS, 0, rows)
        else:
            require(context, rows, "at least", self.length)

    def _with_past(self, new: relax.Expr, index: int, capacity: Dim | None = None) -> Runtime:
        """Return the cache with the new entries (batch, length, heads, size) appended to each sample: (batch, heads,
        capacity, size)."""
        context = self.context
        batch, _, heads, size = tensor_shape(new)
        rows = context.emit(R.permute_dims(new, [0, 2, 1, 3]))
        past = None
        if context.has_input(index):
            past = context.match_shape(context.input(index), [batch, heads, self.past, size])
        if self.is_shared:
            written = write_rows(context.block_builder, past, rows, self.starts, _ROWS)
            return context.runtime(written, context.dtype(0))
        length = expression(self.capacity if capacity is None else capacity)
        if past is None:
            expr = context.emit_te(_first_rows, rows, self.starts, length, primfunc_name_hint="first_cache")
        else:
            expr = context.emit(append_rows(context.block_builder, past, rows, self.starts, length, _ROWS))
        return context.runtime(context.with_simple_sizes(expr), context.dtype(0))


def _first_rows(rows: te.Tensor, starts: te.Tensor, length: Expr) -> te.Tensor:
    """Return a cache of that length with the rows at each sample's start, and zeros elsewhere."""

    def element(*indices: Expr) -> Expr:
        return placed(rows, starts, _ROWS, indices, lambda: tirx.const(0, rows.dtype))

    return te.compute((*rows.shape[:_ROWS], length, *rows.shape[_ROWS + 1 :]), element, name="cache")
