"""Layers of models with several streams, each layer computing one (AltUp, arXiv:2301.13310; Gemma 3n).

Streams are one tensor, float32 (streams, n, hidden).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import te, tirx
from tvm.relax import op as R

from compiler.frontends.llm.config import AlternatingUpdates
from compiler.frontends.llm.emitter import Emitter, number
from compiler.frontends.llm.weights import Linear
from compiler.passes.rewriting.matching import as_constant

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_MIN_MEAN_SQUARE = 1e-5  # lower bound of the mean square of a stream that others are scaled by


def streams_of(model: Emitter, config: AlternatingUpdates, x: Expr) -> Expr:
    """Return the initial streams, from an embedding (1, n, hidden)."""
    others = model.parameters.stream_products("streams_in", config.streams - 1)
    return model.builder.emit(R.concat([x, *(_like(model, model.products.product(x, each), x) for each in others)], 0))


def merged(model: Emitter, config: AlternatingUpdates, streams: Expr) -> Expr:
    """Return the mean of the first stream and projections of the others, scaled to its magnitude: (1, n, hidden)."""
    emit = model.builder.emit
    first, *others = (_stream(model, streams, index) for index in range(config.streams))
    total = first
    weights: list[Linear] = model.parameters.stream_products("streams_out", config.streams - 1)
    for each, weight in zip(others, weights, strict=True):
        total = emit(R.add(total, _like(model, model.products.product(each, weight), first)))
    return model.scaled(total, 1 / config.streams)


class StreamUpdate:
    """A layer's update of all streams."""

    def __init__(self, model: Emitter, index: int, config: AlternatingUpdates) -> None:
        self._model, self._index, self._config = model, index, config

    def predicted(self, streams: Expr) -> Expr:
        """Return the layer's prediction of all streams, a linear mix of them."""
        count = self._config.streams
        routed = self._routed(_stream(self._model, streams, self._config.active))
        factors = self._factors("stream_predict", count * count, routed)

        def compute(x: te.Tensor, factor: te.Tensor) -> te.Tensor:
            def element(to: Expr, row: Expr, k: Expr) -> Expr:
                total = x[to, row, k]
                for other in range(count):
                    total = total + x[other, row, k] * factor[0, row, to * count + other]
                return total

            return te.compute(x.shape, element, name="predicted")

        return self._model.builder.emit_te(compute, streams, factors, primfunc_name_hint="predict_streams")

    def active(self, streams: Expr) -> Expr:
        """Return the stream that the layer computes: (1, n, hidden)."""
        return _stream(self._model, streams, self._config.active)

    def corrected(self, predicted: Expr, computed: Expr) -> Expr:
        """Return all streams, corrected by the computed stream's difference from its prediction."""
        factors = self._factors("stream_correct", self._config.streams, self._routed(computed))
        active = self._config.active

        def compute(x: te.Tensor, new: te.Tensor, factor: te.Tensor) -> te.Tensor:
            def element(to: Expr, row: Expr, k: Expr) -> Expr:
                change = new[0, row, k] - x[active, row, k]
                return x[to, row, k] + change * (factor[0, row, to] + tirx.const(1.0, "float32"))

            return te.compute(x.shape, element, name="corrected")

        return self._model.builder.emit_te(compute, predicted, computed, factors, primfunc_name_hint="correct_streams")

    def scaled(self, x: Expr) -> Expr:
        """Scale the active stream for the layer's own input."""
        weight = self._model.parameters.array(self._index, "stream_scale", (self._model.config.hidden,))
        return self._model.builder.emit(R.multiply(x, as_constant(weight)))

    def laurel(self, x: Expr) -> Expr:
        """Add a normalized low-rank projection of x to x."""
        model, index, hidden = self._model, self._index, self._model.config.hidden
        rank = model.parameters.width(index, "laurel_in")
        low = model.products.product(x, model.parameters.linear(index, "laurel_in", rank, hidden))
        high = model.products.product(low, model.parameters.linear(index, "laurel_out", hidden, rank))
        return model.builder.emit(R.add(x, model.normed(index, "laurel_norm", high)))

    def completed(self, streams: Expr, update: Expr) -> Expr:
        """Add the update by the layer's own input to all streams but the first."""

        def compute(x: te.Tensor, update: te.Tensor) -> te.Tensor:
            def element(to: Expr, row: Expr, k: Expr) -> Expr:
                return x[to, row, k] + tirx.if_then_else(to > 0, update[0, row, k], tirx.const(0.0, "float32"))

            return te.compute(x.shape, element, name="completed")

        return self._model.builder.emit_te(compute, streams, update, primfunc_name_hint="complete_streams")

    def _routed(self, x: Expr) -> Expr:
        """Return the router's output per stream, from which its mixture is computed: (1, n, streams)."""
        model, hidden = self._model, self._model.config.hidden
        normed = model.scaled(model.normed(self._index, "stream_router_norm", x), 1 / hidden)
        weight = model.parameters.linear(self._index, "stream_router", self._config.streams, hidden)
        return model.builder.emit(R.tanh(model.products.exact(normed, weight)))

    def _factors(self, role: str, rows: int, routed: Expr) -> Expr:
        """(1, n, streams) -> (1, n, rows)"""
        weight = self._model.parameters.weights(self._index, role, (rows, self._config.streams))
        return self._model.builder.emit(R.matmul(routed, as_constant(np.ascontiguousarray(weight.T))))


def _stream(model: Emitter, streams: Expr, index: int) -> Expr:
    return model.builder.emit(R.strided_slice(streams, axes=[0], begin=[index], end=[index + 1], assume_inbound=True))


def _like(model: Emitter, x: Expr, target: Expr) -> Expr:
    """Scale x to the root mean square of another stream."""
    emit = model.builder.emit

    def mean_square(each: Expr) -> Expr:
        return emit(R.mean(emit(R.multiply(each, each)), [-1], keepdims=True))

    ratio = emit(R.divide(mean_square(target), emit(R.maximum(mean_square(x), number(_MIN_MEAN_SQUARE)))))
    return emit(R.multiply(x, emit(R.sqrt(ratio))))
