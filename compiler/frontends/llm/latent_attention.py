"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) of one layer, in its absorbed form.

The cache holds one row per token, (compressed keys and values, rotated key). Queries are multiplied by the key weights,
and results by the value weights, so that keys and values of individual heads are never computed.
"""

from __future__ import annotations

from tvm.relax import op as R

from compiler.frontends.llm.attention import KeyValueCache, attend, rotated, tempered
from compiler.frontends.llm.config import LatentConfig
from compiler.frontends.llm.emitter import Emitter
from compiler.frontends.llm.weights import Linear
from schedules.ir.tvm_types import Expr


class LatentAttention:
    """A mixer whose `cache` has the new entries after `heads` was called; `angles` are its rotations, None for none."""

    def __init__(
        self, model: Emitter, index: int, config: LatentConfig, angles: Expr | None, cache: KeyValueCache
    ) -> None:
        self._model, self._index, self._config = model, index, config
        self._angles, self.cache = angles, cache

    def heads(self, x: Expr) -> Expr:
        """Return weighted sums of cached rows for normalized x (1, n, hidden): (1, n, heads * row width)."""
        model, config, emit = self._model, self._config, self._model.builder.emit
        query, row = self._projected(x)
        count = model.config.heads
        plain = self._part(query, 0, count * config.plain)
        plain = emit(R.reshape(plain, (1, model.length, count, config.plain)))
        turned = self._part(query, count * config.plain, count * config.rotated)
        turned = self._placed(emit(R.reshape(turned, (1, model.length, count, config.rotated))))
        absorbed = model.products.of_heads(plain, model.parameters.latent_keys(self._index, config))
        queries = emit(R.concat([absorbed, turned], axis=3))
        if model.config.temperature is not None:
            queries = tempered(model.builder, queries, self.cache.position, model.config.temperature)
        norm = model.parameters.norm(self._index, "kv_a_norm", config.rank)
        compressed = model.normalized(self._part(row, 0, config.rank), norm, config.epsilon)
        compressed = emit(R.reshape(compressed, (1, model.length, 1, config.rank)))
        key = emit(R.reshape(self._part(row, config.rank, config.rotated), (1, model.length, 1, config.rotated)))
        self.cache = self.cache.extended(model.builder, emit(R.concat([compressed, self._placed(key)], axis=3)))
        found = attend(model.builder, model.config, model.config.layers[self._index], queries, self.cache)
        return emit(R.reshape(found, (1, model.length, count * config.width)))

    def output(self, found: Expr) -> Expr:
        """Apply the value weights and the last matmul: (1, n, hidden)."""
        model, config, emit = self._model, self._config, self._model.builder.emit
        rows, count = found.ty.shape[1], model.config.heads
        sums = emit(R.reshape(found, (1, rows, count, config.width)))
        sums = emit(R.strided_slice(sums, axes=[3], begin=[0], end=[config.rank], assume_inbound=True))
        values = model.products.of_heads(sums, model.parameters.latent_values(self._index, config))
        width = count * config.values
        flat = emit(R.reshape(values, (1, rows, width)))
        return model.products.product(flat, model.parameters.linear(self._index, "o", model.config.hidden, width))

    @property
    def states(self) -> tuple[Expr, ...]:
        """Cache with the new entries."""
        return self.cache.parts

    def _projected(self, x: Expr) -> tuple[Expr, Expr]:
        """Return the queries, with the unrotated parts of all heads first, and the row of each token."""
        model, config, parameters = self._model, self._config, self._model.parameters
        row: Linear = parameters.latent_row(self._index, config)
        if not config.query_rank:
            query, new = model.products.products(x, [parameters.latent_queries(self._index, config), row])
            return query, new
        first = parameters.linear(self._index, "q_a", config.query_rank, model.config.hidden)
        low, new = model.products.products(x, [first, row])
        norm = parameters.norm(self._index, "q_a_norm", config.query_rank)
        low = model.normalized(low, norm, config.epsilon)
        return model.products.product(low, parameters.latent_queries(self._index, config)), new

    def _part(self, x: Expr, start: int, width: int) -> Expr:
        """Return a range of columns of (1, n, width)."""
        return self._model.builder.emit(
            R.strided_slice(x, axes=[2], begin=[start], end=[start + width], assume_inbound=True)
        )

    def _placed(self, heads: Expr) -> Expr:
        return heads if self._angles is None else rotated(self._model.builder, heads, self._angles)
