"""A decoder as a Relax module: tokens and caches in, logits and caches out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.ir import IRModule
from tvm.relax import op as R

from compiler.frontends.llm.attention import KeyValueCache, Positions, linear_biases, rotations, row_numbers
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.emitter import Emitter
from compiler.frontends.llm.feed_forward import feed_forward
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Parameters
from compiler.frontends.llm.self_attention import SelfAttention
from compiler.frontends.llm.weights import Matrix
from compiler.passes.rewriting.block_weights import BlockWeight

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Index


TOKENS, POSITION, LOGITS = "tokens", "position", "logits"
OPERAND = "operand"  # a prefix
POSITIONS, SEQUENCES, WANTED = "positions", "sequences", "wanted"


@dataclass(frozen=True)
class DecoderModule:
    """The Relax module of a decoder, and the names of its states: caches, and the scales of int8 ones.

    `main(tokens, position, *caches) -> (logits, *caches)`: tokens int64 (1, n); position int64 (), how many tokens came
    before; each cache (1, key heads, capacity, head size) of type `cache_dtype`; those in `scales` float32 (1, key
    heads, capacity). Logits are float32 (1, 1, vocabulary) of the last token, or (1, n, vocabulary) of all.

    For several sequences, `main(tokens, positions, sequences, wanted, *caches)`: `positions` and `sequences` as
    `compiler.frontends.llm.attention.Positions` has them, `wanted` int64 (m,) the tokens whose logits (1, m,
    vocabulary) are returned; each cache is (slots, key heads, capacity, head size).

    Where the options ask for them, operands of products follow, float32 (1, n, depth); `operands` are their depths.
    """

    mod: IRModule
    caches: tuple[str, ...]
    cache_dtype: str
    scales: frozenset[str] = frozenset()
    operands: tuple[int, ...] = ()


def build_decoder(config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions) -> DecoderModule:
    """Build the module of a decoder.

    Raises:
        InvalidModelError: the checkpoint lacks a tensor, or one has another shape.
        OptionError: the precision does not fit the checkpoint.
    """
    return _Builder(config, parameters, options).build()


class _Builder(Emitter):
    """One decoder under construction."""

    def __init__(self, config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions) -> None:
        super().__init__(config, parameters, options)
        self.capacity = tirx.Var("capacity", "int64")
        self.wanted: Expr | None = None

    def build(self) -> DecoderModule:
        """The module."""
        config, builder = self.config, self.builder
        tokens = relax.Var(TOKENS, relax.TensorType([1, self.length], "int64"))
        position, places = self._positions()
        slots = tirx.Var("slots", "int64") if self.options.sequences else 1
        shape = [slots, config.key_heads, self.capacity, config.head_size]
        embedding = self.parameters.embedding()
        dtype = self.options.cache_dtype(narrow=embedding.kind != "F32")
        rounds = self.options.rounds_attention(dtype, stored=embedding.kind)
        types = {"key": relax.TensorType(shape, dtype), "value": relax.TensorType(shape, dtype)}
        if dtype == "int8":
            types |= {f"{kind}_scale": relax.TensorType(shape[:3], "float32") for kind in ("key", "value")}
        caches = [relax.Var(f"{kind}_{at}", type_) for at in range(len(config.layers)) for kind, type_ in types.items()]
        scales = frozenset(each.name for each in caches if len(each.ty.shape) == 3)
        with builder.function("main", [tokens, *places, *caches]):
            with builder.dataflow():
                kept = _by_layer(caches, position, len(config.layers), rounds=rounds)
                results = self._body(embedding, tokens, position, kept)
                output = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(output)
        operands = tuple(int(each.ty.shape[-1]) for each in self.captured)
        return DecoderModule(builder.get(), tuple(each.name for each in caches), dtype, scales, operands)

    @property
    def captured(self) -> list[Expr]:
        """Results that follow the caches."""
        return self.products.operands if self.options.captures else []

    def _positions(self) -> tuple[Positions, list[relax.Var]]:
        """Where the tokens of a run stand, and the parameters that say it."""

        def parameter(name: str, *shape: Index) -> relax.Var:
            return relax.Var(name, relax.TensorType(list(shape), "int64"))

        if not self.options.sequences:
            start = parameter(POSITION)
            return Positions(start), [start]
        tokens = parameter(POSITIONS, 2, self.length)
        sequences = parameter(SEQUENCES, tirx.Var("sequences", "int64"), 5)
        self.wanted = parameter(WANTED, tirx.Var("m", "int64"))
        return Positions(None, tokens, sequences), [tokens, sequences, self.wanted]

    def _body(self, embedding: Matrix, tokens: Expr, position: Positions, caches: list[KeyValueCache]) -> list[Expr]:
        config = self.config
        table = self.products.table(embedding)
        x = self._embedded(table, tokens, position)
        ropes = {rope: rotations(self.builder, rope, position, self.length) for rope in self._ropes()}
        bias = None if config.slopes is None else linear_biases(self.builder, config.slopes, self.capacity)
        updated: list[Expr] = []
        for index, (layer, cache) in enumerate(zip(config.layers, caches, strict=True)):
            attention = SelfAttention(self, index, ropes.get(layer.rope), bias, cache)
            x = self._block(index, x, attention)
            updated += attention.cache.parts
        if self.options.captures:
            x = self._wanted_rows(x)
        return [self._logits(self.normalized(x, self.parameters.final_norm()), table), *updated, *self.captured]

    def _embedded(self, table: BlockWeight, tokens: Expr, position: Positions) -> Expr:
        """(1, n) -> (1, n, hidden)"""
        config = self.config
        x = self.scaled(self.products.rows(table, tokens), config.embedding_scale)
        if config.position_rows:
            places = row_numbers(self.builder, position, config.position_offset, self.length)
            learned = self.products.exact_rows(self.parameters.positions(), places)
            x = self.builder.emit(R.add(x, learned))
        norm = self.parameters.embedding_norm()
        return x if norm is None else self.normalized(x, norm)

    def _block(self, index: int, x: Expr, attention: SelfAttention) -> Expr:
        """One layer: (1, n, hidden) -> (1, n, hidden); of the last one, rows whose logits are wanted alone."""
        first = self.normed(index, "attention_norm", x)
        found = attention.heads(first)
        if index == len(self.config.layers) - 1 and not self.options.captures:
            # Behind the attention of the last layer, nothing reads the other rows.
            x, first, found = (self._wanted_rows(each) for each in (x, first, found))
        update = self.products.product(found, self.parameters.output(index))
        if self.config.parallel:
            second = self.normed(index, "mlp_norm", x) if self.has_norm(index, "mlp_norm") else first
            return self.residual(x, update, feed_forward(self, index, second))
        x = self.residual(x, self.normed(index, "post_attention_norm", update))
        found = feed_forward(self, index, self.normed(index, "mlp_norm", x))
        return self.residual(x, self.normed(index, "post_mlp_norm", found))

    def _wanted_rows(self, x: Expr) -> Expr:
        """The rows (1, n, width) of tokens whose logits are returned."""
        if self.wanted is not None:
            return self.builder.emit_te(_selected, x, self.wanted, primfunc_name_hint="wanted_tokens")
        return x if self.options.all_logits else self.builder.emit_te(last_row, x, primfunc_name_hint="last_token")

    def _logits(self, x: Expr, table: BlockWeight) -> Expr:
        head = self.parameters.head()
        products = self.products
        logits = products.with_table(x, table) if head is None else products.product(x, head, is_head=True)
        return self.capped(self.scaled(logits, self.config.logit_scale), self.config.logit_cap)

    def _ropes(self) -> list[Expr]:
        return list(dict.fromkeys(layer.rope for layer in self.config.layers if layer.rope is not None))


def _by_layer(caches: list[Expr], position: Positions, layers: int, *, rounds: bool) -> list[KeyValueCache]:
    """The caches of each layer."""
    parts = len(caches) // layers
    found = []
    for start in range(0, len(caches), parts):
        keys, values, *scales = caches[start : start + parts]
        found.append(KeyValueCache(keys, values, position, tuple(scales), rounds))
    return found


def last_row(x: te.Tensor) -> te.Tensor:
    """The last row: (1, n, width) -> (1, 1, width)."""
    return te.compute((1, 1, x.shape[2]), lambda b, _, k: x[b, x.shape[1] - 1, k], name="last")


def _selected(x: te.Tensor, wanted: te.Tensor) -> te.Tensor:
    """Some rows: (1, n, width) -> (1, m, width)."""

    def element(b: Expr, row: Expr, k: Expr) -> Expr:
        place = tirx.max(tirx.min(wanted[row], x.shape[1] - 1), tirx.const(0, "int64"))
        return x[b, place, k]

    return te.compute((1, wanted.shape[0], x.shape[2]), element, name="selected")
