"""The attention of a decoder layer."""

from __future__ import annotations

from tvm.relax import op as R

from compiler.frontends.llm.attention import KeyValueCache, attend, rotated, tempered
from compiler.frontends.llm.config import Heads, LayerConfig
from compiler.frontends.llm.emitter import Emitter
from compiler.frontends.llm.parameters import Norm
from compiler.passes.rewriting.matching import as_constant
from schedules.ir.tvm_types import Expr, Index


class SelfAttention:
    """Attention of one layer; `cache` has the new entries after `heads` was called.

    `angles` are its rotations, None for none; `bias` is added to its scores, None for none.
    """

    def __init__(
        self, model: Emitter, index: int, angles: Expr | None, bias: Expr | None, cache: KeyValueCache
    ) -> None:
        self._model, self._index, self._angles, self._bias, self.cache = model, index, angles, bias, cache

    def heads(self, x: Expr) -> Expr:
        """Return the attention results of all heads, for normalized x (1, n, hidden): (1, n, heads * head size)."""
        model, parameters, products = self._model, self._model.parameters, self._model.products
        if model.config.attention_gate is not None:
            return self._gated_heads(x)
        parts = parameters.queries_keys_values(self._index)
        heads = self._counts
        wide = len(parts) == 3 and (  # norms over all heads
            self._norms_all_heads("q_norm", heads.count) or self._norms_all_heads("k_norm", heads.keys)
        )
        return self._attended(*(products.products(x, parts) if wide else products.heads(x, parts, heads.size)))

    def output(self, found: Expr) -> Expr:
        """Apply the output projection: (1, n, hidden)."""
        model = self._model
        found = model.normed(self._index, "o_norm", found)
        return model.products.product(found, model.parameters.output(self._index))

    @property
    def states(self) -> tuple[Expr, ...]:
        """The cache with the new entries; empty if the layer uses another layer's cache."""
        return self.cache.parts if self._layer.shares is None else ()

    @property
    def _layer(self) -> LayerConfig:
        return self._model.config.layers[self._index]

    @property
    def _counts(self) -> Heads:
        return self._model.config.heads_of(self._index)

    def _gated_heads(self, x: Expr) -> Expr:
        """Compute `heads` with results multiplied by gates, per element or per head."""
        model, heads, emit = self._model, self._counts, self._model.builder.emit
        length, linears = x.ty.shape[1], model.parameters.gated_queries_keys_values(self._index)
        shape: tuple[Index, ...] = (1, length, heads.queries)
        if linears[3].weight.rows == heads.queries:
            *parts, gates = model.products.heads(x, linears, heads.size)
            attended = self._attended(*parts)
        else:
            attended = self._attended(*model.products.heads(x, linears[:3], heads.size))
            attended = emit(R.reshape(attended, (1, length, heads.count, heads.size)))
            gates, shape = model.products.product(x, linears[3]), (1, length, heads.count, 1)
        gates = emit(R.reshape(gates, shape))
        opened = emit(R.sigmoid(gates)) if model.config.attention_gate == "sigmoid" else model.softplus(gates)
        gated = emit(R.multiply(attended, opened))
        return emit(R.reshape(gated, (1, length, heads.queries)))

    def _attended(self, query: Expr, key: Expr | None = None, value: Expr | None = None) -> Expr:
        """Apply attention to the projections' results; without keys, over another layer's cache."""
        config, builder, heads = self._model.config, self._model.builder, self._counts
        query = self._placed(query, heads.count, "q_norm")
        if config.temperature is not None and (self._angles is None or config.temperature.rotated):
            query = tempered(builder, query, self.cache.position, config.temperature)
        if key is not None:
            values = self._values(key if value is None else value)
            self.cache = self.cache.extended(builder, self._placed(key, heads.keys, "k_norm"), values)
        stored = self._model.parameters.sinks(self._index)
        sinks = None if stored is None else as_constant(stored)
        found = attend(builder, config, self._layer, query, self.cache, self._bias, sinks)
        return builder.emit(R.reshape(found, (1, query.ty.shape[1], heads.queries)))

    def _values(self, x: Expr) -> Expr:
        heads = self._heads(x, self._counts.keys, None)
        return self._model.normalized(heads, Norm(None)) if self._model.config.bare_value_norms else heads

    def _norms_all_heads(self, norm: str, count: int) -> bool:
        """True if a norm is over all heads together."""
        model, size = self._model, self._counts.size
        if not model.has_norm(self._index, norm):
            return False
        return model.parameters.norm_size(self._index, norm, (size, count * size)) != size

    def _heads(self, x: Expr, count: int, norm: str | None) -> Expr:
        """Return (1, n, count, head size), normalized per head or over all heads, then clipped; x may have that
        shape."""
        model, size = self._model, self._counts.size
        shape = (1, x.ty.shape[1], count, size)
        if norm is not None and model.config.bare_head_norms and self._angles is not None:
            return self._clipped(model.normalized(self._shaped(x, shape), Norm(None)))
        if norm is None or not model.has_norm(self._index, norm):
            return self._shaped(self._clipped(x), shape)
        width = model.parameters.norm_size(self._index, norm, (size, count * size))
        weight = model.parameters.norm(self._index, norm, width)
        if width == size:
            return self._clipped(model.normalized(self._shaped(x, shape), weight))
        return self._shaped(self._clipped(model.normalized(x, weight)), shape)

    def _shaped(self, x: Expr, shape: tuple[Index, ...]) -> Expr:
        return x if len(x.ty.shape) == len(shape) else self._model.builder.emit(R.reshape(x, shape))

    def _clipped(self, x: Expr) -> Expr:
        limit = self._model.config.clip
        return x if limit is None else self._model.builder.emit(R.clip(x, -limit, limit))

    def _placed(self, x: Expr, count: int, norm: str) -> Expr:
        """Return heads, normalized, and rotated by position if the layer has rotations."""
        if self._angles is None:
            return self._heads(x, count, norm)
        if not self._model.config.norms_after_rotation:
            return rotated(self._model.builder, self._heads(x, count, norm), self._angles)
        return self._heads(rotated(self._model.builder, self._heads(x, count, None), self._angles), count, norm)
