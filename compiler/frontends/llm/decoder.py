"""A decoder as a Relax module: tokens and caches in, logits and caches out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import IRModule
from tvm.relax import op as R

from compiler.frontends.llm.attention import KeyValueCache, Positions, attend, rotated, rotations
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Parameters
from compiler.frontends.llm.products import Products
from compiler.frontends.llm.weights import Array, Matrix
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.matching import as_constant

Expr = Any
TOKENS, POSITION, LOGITS = "tokens", "position", "logits"
POSITIONS, SEQUENCES, WANTED = "positions", "sequences", "wanted"


@dataclass(frozen=True)
class DecoderModule:
    """The Relax module of a decoder, and the names of its caches.

    `main(tokens, position, *caches) -> (logits, *caches)`: tokens int64 (1, n); position int64 (), how many tokens came
    before; each cache (1, key heads, capacity, head size) of type `cache_dtype`. Logits are float32 (1, 1, vocabulary)
    of the last token, or (1, n, vocabulary) of all.

    For several sequences, `main(tokens, positions, sequences, wanted, *caches)`: `positions` and `sequences` as
    `compiler.frontends.llm.attention.Positions` has them, `wanted` int64 (m,) the tokens whose logits (1, m,
    vocabulary) are returned; each cache is (slots, key heads, capacity, head size).
    """

    mod: IRModule
    caches: tuple[str, ...]
    cache_dtype: str


def build_decoder(config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions) -> DecoderModule:
    """Build the module of a decoder.

    Raises:
        InvalidModelError: the checkpoint lacks a tensor, or one has another shape.
        OptionError: the precision does not fit the checkpoint.
    """
    return _Builder(config, parameters, options).build()


class _Builder:
    """One decoder under construction."""

    def __init__(self, config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions) -> None:
        self.config, self.parameters, self.options = config, parameters, options
        self.builder = relax.BlockBuilder()
        self.products = Products(self.builder, options)
        self.length = tirx.Var("n", "int64")
        self.capacity = tirx.Var("capacity", "int64")
        self.wanted: Any | None = None

    def build(self) -> DecoderModule:
        config, builder = self.config, self.builder
        tokens = relax.Var(TOKENS, relax.TensorType([1, self.length], "int64"))
        position, places = self._positions()
        slots = tirx.Var("slots", "int64") if self.options.sequences else 1
        shape = [slots, config.key_heads, self.capacity, config.head_size]
        names = [f"{kind}_{index}" for index in range(len(config.layers)) for kind in ("key", "value")]
        embedding = self.parameters.embedding()
        dtype = self.options.cache_dtype(narrow=embedding.kind != "F32")
        caches = [relax.Var(name, relax.TensorType(shape, dtype)) for name in names]
        with builder.function("main", [tokens, *places, *caches]):
            with builder.dataflow():
                results = self._body(embedding, tokens, position, caches)
                output = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(output)
        return DecoderModule(builder.get(), tuple(names), dtype)

    def _positions(self) -> tuple[Positions, list[relax.Var]]:
        """Where the tokens of a run stand, and the parameters that say it."""

        def parameter(name: str, *shape: Any) -> relax.Var:
            return relax.Var(name, relax.TensorType(list(shape), "int64"))

        if not self.options.sequences:
            start = parameter(POSITION)
            return Positions(start), [start]
        tokens = parameter(POSITIONS, 2, self.length)
        sequences = parameter(SEQUENCES, tirx.Var("sequences", "int64"), 5)
        self.wanted = parameter(WANTED, tirx.Var("m", "int64"))
        return Positions(None, tokens, sequences), [tokens, sequences, self.wanted]

    def _body(self, embedding: Matrix, tokens: Expr, position: Positions, caches: list[Expr]) -> list[Expr]:
        config = self.config
        table = self.products.table(embedding)
        x = self._scaled(self.products.rows(table, tokens), config.embedding_scale)
        ropes = {rope: rotations(self.builder, rope, position, self.length) for rope in self._ropes()}
        updated = []
        for index, layer in enumerate(config.layers):
            cache = KeyValueCache(caches[2 * index], caches[2 * index + 1], position)
            attention = _Attention(self, index, ropes.get(layer.rope), cache)
            x = self._residual(x, self._normed(index, "post_attention_norm", attention.result(x)))
            updated += [attention.cache.keys, attention.cache.values]
            x = self._residual(x, self._normed(index, "post_mlp_norm", self._mlp(index, x)))
        if self.wanted is not None:
            x = self.builder.emit_te(_selected, x, self.wanted, primfunc_name_hint="wanted_tokens")
        elif not self.options.all_logits:
            x = self.builder.emit_te(_last, x, primfunc_name_hint="last_token")
        return [self._logits(self.normalized(x, self.parameters.final_norm()), table), *updated]

    def _logits(self, x: Expr, table: BlockWeight) -> Expr:
        head = self.parameters.head()
        products = self.products
        logits = products.with_table(x, table) if head is None else products.product(x, head, is_head=True)
        return self._capped(self._scaled(logits, self.config.logit_scale), self.config.logit_cap)

    def _ropes(self) -> list[Any]:
        return list(dict.fromkeys(layer.rope for layer in self.config.layers if layer.rope is not None))

    def _mlp(self, index: int, x: Expr) -> Expr:
        emit = self.builder.emit
        x = self._normed(index, "mlp_norm", x)
        gate, up = self.products.products(x, self.parameters.gate_up(index))
        gated = emit(R.multiply(_activated(self.builder, gate, self.config.activation), up))
        return self.products.product(gated, self.parameters.down(index))

    def _normed(self, index: int, role: str, x: Expr) -> Expr:
        """Normalized where the layer has that norm."""
        if not self.parameters.has_norm(index, role):
            return x
        return self.normalized(x, self.parameters.norm(index, role, self.config.hidden))

    def normalized(self, x: Expr, weight: Array | None) -> Expr:
        """Over the last axis; a weight of None is 1."""
        size = int(x.ty.shape[-1])
        scale = as_constant(np.ones(size, np.float32) if weight is None else weight.astype(np.float32))
        if self.config.norm == "rms":
            return self.builder.emit(R.nn.rms_norm(x, scale, [-1], self.config.epsilon))
        bias = as_constant(np.zeros(size, np.float32))
        return self.builder.emit(R.nn.layer_norm(x, scale, bias, [-1], self.config.epsilon))

    def _residual(self, x: Expr, added: Expr) -> Expr:
        return self.builder.emit(R.add(x, self._scaled(added, self.config.residual_scale)))

    def _scaled(self, x: Expr, factor: float) -> Expr:
        return x if factor == 1.0 else self.builder.emit(R.multiply(x, _number(factor)))

    def _capped(self, x: Expr, cap: float | None) -> Expr:
        if cap is None:
            return x
        emit = self.builder.emit
        return emit(R.multiply(emit(R.tanh(emit(R.divide(x, _number(cap))))), _number(cap)))


class _Attention:
    """The attention of one layer; `cache` has the new entries once `result` was called."""

    def __init__(self, model: _Builder, index: int, angles: Expr | None, cache: KeyValueCache) -> None:
        self._model, self._index, self._angles, self.cache = model, index, angles, cache

    def result(self, x: Expr) -> Expr:
        """What is added to x: (1, n, hidden)."""
        model, config, parameters = self._model, self._model.config, self._model.parameters
        builder = model.builder
        x = model._normed(self._index, "attention_norm", x)
        query, key, value = model.products.products(x, parameters.queries_keys_values(self._index))
        if config.clip is not None:
            query, key, value = (builder.emit(R.clip(each, -config.clip, config.clip)) for each in (query, key, value))
        query = self._placed(self._heads(query, config.heads, "q_norm"))
        key = self._placed(self._heads(key, config.key_heads, "k_norm"))
        value = self._heads(value, config.key_heads, None)
        self.cache = self.cache.extended(builder, key, value)
        found = attend(builder, config, query, self.cache, config.layers[self._index].window)
        return model.products.product(found, parameters.output(self._index))

    def _heads(self, x: Expr, count: int, norm: str | None) -> Expr:
        """(1, n, count, head size), normalized a head, or all heads together."""
        model, size = self._model, self._model.config.head_size
        emit = model.builder.emit
        shape = (1, model.length, count, size)
        if norm is None or not model.parameters.has_norm(self._index, norm):
            return emit(R.reshape(x, shape))
        width = model.parameters.norm_size(self._index, norm, (size, count * size))
        weight = model.parameters.norm(self._index, norm, width)
        if width == size:
            return model.normalized(emit(R.reshape(x, shape)), weight)
        return emit(R.reshape(model.normalized(x, weight), shape))

    def _placed(self, heads: Expr) -> Expr:
        """Rotated by the positions, where the layer does so."""
        return heads if self._angles is None else rotated(self._model.builder, heads, self._angles)


def _last(x: te.Tensor) -> te.Tensor:
    """The last row: (1, n, width) -> (1, 1, width)."""
    return te.compute((1, 1, x.shape[2]), lambda b, _, k: x[b, x.shape[1] - 1, k], name="last")


def _selected(x: te.Tensor, wanted: te.Tensor) -> te.Tensor:
    """Some rows: (1, n, width) -> (1, m, width)."""

    def element(b: Any, row: Any, k: Any) -> Any:
        place = tirx.max(tirx.min(wanted[row], x.shape[1] - 1), tirx.const(0, "int64"))
        return x[b, place, k]

    return te.compute((1, wanted.shape[0], x.shape[2]), element, name="selected")


def _activated(builder: relax.BlockBuilder, x: Expr, kind: str) -> Expr:
    functions = {"silu": R.nn.silu, "gelu": R.nn.gelu, "gelu_tanh": R.nn.gelu_tanh, "relu": R.nn.relu}
    return builder.emit(functions[kind](x))


def _number(value: float) -> Expr:
    return relax.const(value, "float32")
