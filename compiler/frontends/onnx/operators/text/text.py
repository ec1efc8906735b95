"""Strings, which do not exist at run time, so that their results must be known during import; and TfIdfVectorizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.evaluation.reference import fold_strings
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, in_vectors, int64
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Value, tensor_shape
from compiler.support.optional import optional_module
from schedules.ir.tvm_types import Buffer, Expr, Stmt


@converter("StringConcat", "StringNormalizer", "StringSplit")
def string_function(context: NodeContext) -> list[Value]:
    """Evaluated during import; refused for non-constant inputs."""
    return fold_strings(context)


@converter("RegexFullMatch")
def regex_full_match(context: NodeContext) -> Constant:
    """Match with RE2, whose syntax ONNX prescribes, in time linear in the text; onnx's reference implementation
    backtracks."""
    texts = context.constant(0)
    re2 = optional_module("re2", "strings", "matches the expressions of RegexFullMatch")
    options = re2.Options()
    options.log_errors = False
    try:
        expression = re2.compile(context.attribute("pattern", ""), options)
    except re2.error as error:
        context.invalid(f"its pattern is not a regular expression of RE2: {error}")
    found = [expression.fullmatch(str(text)) is not None for text in texts.ravel()]
    return Constant(np.array(found, bool).reshape(texts.shape))


_LONGEST_TABLE = 1 << 16  # entries for first tokens


@dataclass(frozen=True)
class _Grams:
    """The n-grams to count: start in the pool, length, and output column of each. All int64.

    They are sorted by first token: those that begin with `firsts[i]` are from `begins[i]` to `begins[i + 1]`.
    If the first tokens are dense, `firsts` contains only the least of them, and `begins` has an entry for each number
    from there on.
    """

    firsts: np.ndarray
    begins: np.ndarray
    pool: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of the kernel's operands."""
        return self.firsts, self.begins, self.pool, self.starts, self.lengths, self.columns


@converter("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(context: NodeContext) -> relax.Expr | list[Value]:
    """Weighted counts of n-grams in each row, with up to max_skip_count tokens skipped between their tokens."""
    if context.dtype(0) == "string":
        return fold_strings(context)
    grams, rank = _grams(context), context.rank(0)
    width = int(max(context.required_attribute("ngram_indexes"), default=-1)) + 1
    tokens = cast(context, context.input(0), "int64")
    if rank == 1:
        tokens = context.emit(R.expand_dims(tokens, [0]))
    if len(grams.columns):
        operands = [Constant(array).expr() for array in grams.arrays()]
        kernel = _counting_kernel(width, int(context.required_attribute("max_skip_count")))
        counts = context.emit_te(kernel, tokens, *operands, primfunc_name_hint="ngram_counts")
    else:
        counts = filled(context, 0, "float32", [tensor_shape(tokens)[0], width])
    result = _weighted(context, counts, grams, width)
    return result if rank == 2 else context.reshape(result, [width])


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
    chosen = np.array([[starts[i], lengths[i], columns[i]] for i in wanted], np.int64).reshape(-1, 3)
    heads = pool[chosen[:, 0]]
    ordered = chosen[np.argsort(heads, kind="stable")]
    firsts, counts = np.unique(heads, return_counts=True)
    if len(firsts) and int(firsts[-1]) - int(firsts[0]) < _LONGEST_TABLE:
        counts = np.bincount(heads - firsts[0])
        firsts = firsts[:1]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return _Grams(firsts, ends, pool, *(np.ascontiguousarray(each) for each in ordered.T))


def _weighted(context: NodeContext, counts: relax.Expr, grams: _Grams, width: int) -> relax.Expr:
    mode = context.required_attribute("mode")
    weights = np.ones(width, np.float32)
    stored: list[float] = context.attribute("weights", [])
    if stored:
        weights[np.array(context.required_attribute("ngram_indexes"))] = stored
    if mode == "TF":
        return counts
    if mode == "IDF":
        counts = context.emit(R.minimum(counts, relax.const(1.0, "float32")))
    return context.emit(R.multiply(counts, Constant(weights).expr()))


def _counting_kernel(width: int, skips: int) -> Callable[..., Stmt]:
    def kernel(tokens: te.Tensor, *grams: te.Tensor) -> te.Tensor:
        rows = tokens.shape[0]

        def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            with IRBuilder() as builder:
                _count_rows(ins, outs, skips)
                return builder.get()

        shapes = [[rows, int64(width)], [int64(_STATE)]]
        outputs = te.extern(shapes, [tokens, *grams], generate, dtype=["float32", "int64"], name="ngrams")
        return outputs[0]

    return kernel


# Positions in `state`: the range of first tokens not ruled out yet, whether an n-gram matches.
_LOW, _HIGH, _IS_SAME, _STATE = range(4)


def _count_rows(ins: Sequence[Buffer], outs: Sequence[Buffer], skips: int) -> None:
    tokens, firsts, begins = (FlatBuffer(item) for item in ins[:3])
    result, state = (FlatBuffer(out) for out in outs)
    (rows, count), different, width = ins[0].shape, int(ins[1].shape[0]), outs[0].shape[1]
    entries = int(ins[2].shape[0]) - 1
    with in_sequence(rows, "rows share one scratch buffer") as row, T.seq_scope():
        in_vectors(width, "float32", lambda i: result.__setitem__(row * width + i, tirx.const(0.0, "float32")))
        with T.serial(0, count) as i, T.seq_scope():
            token = T.bind(tokens[row * count + i])
            if different == 1:  # of a table
                is_known = tirx.all(token >= firsts[0], token < firsts[0] + int64(entries))
                with T.If(is_known), T.Then(), T.seq_scope():
                    number = T.bind(token - firsts[0])
                    with T.serial(begins[number], begins[number + int64(1)]) as gram:
                        _count_gram(ins, outs, skips, row, i, gram)
            else:
                index = _position_of(token, firsts, state, different)
                with T.If(firsts[index] == token), T.Then(), T.serial(begins[index], begins[index + int64(1)]) as gram:
                    _count_gram(ins, outs, skips, row, i, gram)


def _position_of(token: Expr, firsts: Buffer, state: Buffer, different: int) -> Expr:
    """Return the position of the first token that is not less, or the last position."""
    state[_LOW] = int64(0)
    state[_HIGH] = int64(different)
    with T.serial(0, int64(different.bit_length())), T.If(state[_LOW] < state[_HIGH]), T.Then(), T.seq_scope():
        middle = T.bind((state[_LOW] + state[_HIGH]) >> 1)
        with T.If(firsts[middle] < token):
            with T.Then():
                state[_LOW] = middle + int64(1)
            with T.Else():
                state[_HIGH] = middle
    return T.bind(tirx.min(state[_LOW], int64(different - 1)))


def _count_gram(ins: Sequence[Buffer], outs: Sequence[Buffer], skips: int, row: Expr, start: Expr, gram: Expr) -> None:
    """Count an n-gram starting at a token, once for each number of skipped tokens."""
    tokens, _, _, pool, starts, lengths, columns = (FlatBuffer(item) for item in ins)
    result, state = (FlatBuffer(out) for out in outs)
    count, width = ins[0].shape[1], outs[0].shape[1]
    with T.serial(0, int64(skips + 1)) as skip, T.seq_scope():
        reach = start + (lengths[gram] - int64(1)) * (skip + int64(1))
        # A single token has nothing to skip.
        counts = tirx.any(skip == int64(0), lengths[gram] > int64(1))
        with T.If(tirx.all(counts, reach < count)), T.Then(), T.seq_scope():
            state[_IS_SAME] = int64(1)
            with T.serial(0, lengths[gram]) as k:
                token = tokens[row * count + start + k * (skip + int64(1))]
                with T.If(token != pool[starts[gram] + k]), T.Then():
                    state[_IS_SAME] = int64(0)
            with T.If(state[_IS_SAME] == int64(1)), T.Then():
                index = row * width + columns[gram]
                result[index] = result[index] + tirx.const(1.0, "float32")
