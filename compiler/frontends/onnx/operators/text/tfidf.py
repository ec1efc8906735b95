"""TfIdfVectorizer of integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.evaluation.reference import fold_strings
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.operators.tensor.sort_kernels import int64
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import Constant, Value

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer, Stmt


@dataclass(frozen=True)
class _Grams:
    """The n-grams to count: where each begins in the pool, its length, the column that counts it. All int64."""

    pool: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray


@converter("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(context: NodeContext) -> relax.Expr | list[Value]:
    """How often n-grams with up to max_skip_count tokens left out between theirs occur in each row; weighted."""
    if context.dtype(0) == "string":
        return fold_strings(context)
    grams, rank = _grams(context), context.rank(0)
    width = int(max(context.required_attribute("ngram_indexes"), default=-1)) + 1
    tokens = cast(context, context.input(0), "int64")
    if rank == 1:
        tokens = context.emit(R.expand_dims(tokens, [0]))
    operands = [Constant(a).expr() for a in (grams.pool, grams.starts, grams.lengths, grams.columns)]
    kernel = _counting_kernel(width, int(context.required_attribute("max_skip_count")))
    counts = context.emit_te(kernel, tokens, *operands, primfunc_name_hint="ngram_counts")
    result = _weighted(context, counts, grams, width)
    return result if rank == 2 else context.emit(R.reshape(result, relax.ShapeExpr([expression(width)])))


def _grams(context: NodeContext) -> _Grams:
    pool = np.array(context.required_attribute("pool_int64s"), np.int64)
    bounds: list[int] = [*context.required_attribute("ngram_counts"), len(pool)]
    columns: list[int] = list(context.required_attribute("ngram_indexes"))
    shortest, longest = context.required_attribute("min_gram_length"), context.required_attribute("max_gram_length")
    starts, lengths = [], []
    for length, (begin, end) in enumerate(pairwise(bounds), 1):
        starts += list(range(begin, end, length))
        lengths += [length] * len(range(begin, end, length))
    if min(columns, default=0) < 0 or any(s + n > len(pool) for s, n in zip(starts, lengths, strict=True)):
        context.invalid("ngram_counts or ngram_indexes do not fit its pool")
    if min(bounds) < 0 or len(starts) != len(columns):
        context.invalid(f"its pool holds {len(starts)} n-grams, ngram_indexes {len(columns)}")
    wanted = [i for i, length in enumerate(lengths) if shortest <= length <= longest]
    chosen = (np.array([values[i] for i in wanted], np.int64) for values in (starts, lengths, columns))
    return _Grams(pool, *chosen)


def _weighted(context: NodeContext, counts: relax.Expr, grams: _Grams, width: int) -> relax.Expr:
    mode = context.required_attribute("mode")
    weights = np.ones(width, np.float32)
    given: list[float] = context.attribute("weights", [])
    if given:
        weights[np.array(context.required_attribute("ngram_indexes"))] = given
    if mode == "TF":
        return counts
    if mode == "IDF":
        counts = context.emit(R.minimum(counts, relax.const(1.0, "float32")))
    return context.emit(R.multiply(counts, Constant(weights).expr()))


def _counting_kernel(width: int, skips: int) -> Callable[..., Stmt]:
    def kernel(tokens: te.Tensor, *grams: te.Tensor) -> te.Tensor:
        rows, count, total = tokens.shape[0], tokens.shape[1], grams[1].shape[0]

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            row_tokens, pool, starts, lengths, columns = (T.buffer_proxy(item) for item in ins)
            result, state = (T.buffer_proxy(out) for out in outs)
            one = tirx.const(1.0, "float32")
            with IRBuilder() as builder:
                with T.serial(0, rows) as row, T.seq_scope():
                    with T.serial(0, int64(width)) as column:
                        result[row * width + column] = tirx.const(0.0, "float32")
                    with T.serial(0, total) as g, T.serial(0, int64(skips + 1)) as skip, T.serial(0, count) as i:
                        reach = i + (lengths[g] - int64(1)) * (skip + int64(1))
                        # One token has nothing to skip.
                        counts = tirx.any(skip == int64(0), lengths[g] > int64(1))
                        with T.If(tirx.all(counts, reach < count)), T.Then(), T.seq_scope():
                            state[0] = int64(1)
                            with T.serial(0, lengths[g]) as k:
                                token = row_tokens[row * count + i + k * (skip + int64(1))]
                                with T.If(token != pool[starts[g] + k]), T.Then():
                                    state[0] = int64(0)
                            with T.If(state[0] == int64(1)), T.Then():
                                place = row * width + columns[g]
                                result[place] = result[place] + one
                return builder.get()

        outputs = te.extern(
            [[rows, int64(width)], [int64(1)]], [tokens, *grams], generate, dtype=["float32", "int64"], name="ngrams"
        )
        return outputs[0]

    return kernel
