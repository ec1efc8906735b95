"""The MLP or mixture of experts of a layer."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax
from tvm.relax import op as R

from compiler.frontends.llm.config import ExpertsConfig
from compiler.frontends.llm.emitter import Emitter, number
from compiler.frontends.llm.parameters import Norm
from compiler.frontends.llm.weights import Linear
from compiler.passes.rewriting.expert_products import (
    Routing,
    combined,
    limited_to_groups,
    route,
    scaled_slots,
    scores_of_chosen,
)
from compiler.passes.rewriting.matching import as_constant
from schedules.ir.tvm_types import Expr


def normed_feed_forward(model: Emitter, index: int, x: Expr, entered: Expr) -> Expr:
    """Return the residual update of the block, including norms before and after it: (1, n, hidden).

    `entered` is the layer's input, which some routers read.
    """
    experts = model.config.layers[index].experts
    output = feed_forward(model, index, model.normed(index, "mlp_norm", x), entered)
    if experts is not None and experts.beside:
        routed_by = model.normalized(x, Norm(None))
        mixed = _Mixture(model, index, experts).result(model.normed(index, "experts_norm", x), routed_by)
        mixed = model.normed(index, "experts_post_norm", mixed)
        output = model.builder.emit(R.add(model.normed(index, "dense_post_norm", output), mixed))
    return model.normed(index, "post_mlp_norm", output)


def feed_forward(model: Emitter, index: int, x: Expr, entered: Expr | None = None) -> Expr:
    """Apply a layer's MLP, or the mixture that replaces it, to normalized x: (1, n, hidden)."""
    experts = model.config.layers[index].experts
    parameters = model.parameters
    if experts is not None and not experts.beside:
        return _Mixture(model, index, experts).result(x, entered if experts.early and entered is not None else x)
    if model.config.gated:
        return _gated(model, index, x, parameters.gate_up(index), parameters.down(index))
    return _plain(model, index, x, parameters.up(index), parameters.down(index))


def _plain(model: Emitter, index: int, x: Expr, up: Linear, down: Linear) -> Expr:
    return model.products.product(model.activated(index, model.products.product(x, up)), down)


def _gated(model: Emitter, index: int, x: Expr, gate_up: Sequence[Linear], down: Linear) -> Expr:
    sparsity = model.config.layers[index].sparsity
    hidden = None if sparsity is not None else model.products.gated(x, gate_up, model.config.activation)
    if hidden is None:
        gate, up = model.products.products(x, gate_up)
        gate = gate if sparsity is None else _sparse(model, gate, sparsity)
        hidden = model.builder.emit(R.multiply(model.activated(index, gate), up))
    return model.products.product(model.normed(index, "down_norm", hidden), down)


def _sparse(model: Emitter, gate: Expr, sparsity: float) -> Expr:
    """Return the excess of gates over their mean plus `sparsity` times their standard deviation."""
    emit = model.builder.emit
    centered = emit(R.subtract(gate, emit(R.mean(gate, [-1], keepdims=True))))
    deviation = emit(R.sqrt(emit(R.mean(emit(R.multiply(centered, centered)), [-1], keepdims=True))))
    return emit(R.nn.relu(emit(R.subtract(centered, model.scaled(deviation, sparsity)))))


class _Mixture:
    """Experts of one layer."""

    def __init__(self, model: Emitter, index: int, config: ExpertsConfig) -> None:
        self._model, self._index, self._config = model, index, config

    def result(self, x: Expr, routed_by: Expr) -> Expr:
        """Apply the mixture, (1, n, hidden) -> (1, n, hidden); the router reads `routed_by`."""
        model, config, parameters = self._model, self._config, self._model.parameters
        emit, products = model.builder.emit, model.products
        shape = (x.ty.shape[1], model.config.hidden)
        rows = emit(R.reshape(x, shape))
        read = rows if routed_by is x else emit(R.reshape(routed_by, shape))
        # The router stays exact: rounding could select another expert.
        logits = scores = products.exact(read, parameters.router(self._index, config))
        if config.sigmoid:
            scores = emit(R.sigmoid(scores))
        elif config.jitter is None:
            scores = emit(R.nn.softmax(scores, -1))
        choice = (
            emit(R.add(scores, as_constant(parameters.router_bias(self._index, config)))) if config.biased else scores
        )
        if config.groups > 1:
            best = 2 if config.sigmoid else 1
            choice = limited_to_groups(model.builder, choice, config.groups, config.groups_chosen, best)
        routing = route(model.builder, logits if config.scales_inputs else choice, config.chosen)
        if config.scales_inputs:
            rows = scaled_slots(model.builder, rows, scores, routing)
        if config.latent:
            rows = products.product(rows, parameters.linear(self._index, "experts_in", config.latent, shape[1]))
        hidden = self._hidden(rows, routing)
        [outputs] = products.experts(hidden, [parameters.expert_down(self._index, config)], routing, of_slots=True)
        if config.scales_inputs:
            return self._completed(x, combined(model.builder, outputs, routing, emit(R.ones_like(routing.scores))))
        weights = routing.scores if config.jitter is None else self._sparse_weights(scores, routing.scores)
        if config.biased:
            weights = scores_of_chosen(model.builder, scores, routing)
        if config.normalized:
            total = emit(R.sum(weights, -1, keepdims=True))
            total = emit(R.add(total, number(config.sum_epsilon))) if config.sum_epsilon else total
            weights = emit(R.divide(weights, total))
        weights = model.scaled(weights, config.scale)
        if config.beside:
            factors = emit(
                R.multiply(emit(R.ones_like(scores)), as_constant(parameters.expert_scale(self._index, config)))
            )
            weights = emit(R.multiply(weights, scores_of_chosen(model.builder, factors, routing)))
        return self._completed(x, combined(model.builder, outputs, routing, weights))

    def _completed(self, x: Expr, output: Expr) -> Expr:
        """Sum the results (n, width) of each token's experts and of the shared MLP: (1, n, hidden)."""
        model, config = self._model, self._config
        if config.latent:
            out = model.parameters.linear(self._index, "experts_out", model.config.hidden, config.latent)
            output = model.products.product(output, out)
        output = model.builder.emit(R.reshape(output, tuple(x.ty.shape)))
        if not config.shared:
            return output
        return model.scaled(model.builder.emit(R.add(output, self._shared(x))), 0.5 if config.averaged else 1.0)

    def _hidden(self, rows: Expr, routing: Routing) -> Expr:
        """Return the inputs of the experts' last matmuls, for tokens, or for slots if inputs are scaled."""
        parameters, slots = self._model.parameters, self._config.scales_inputs
        if self._model.config.gated:
            first = parameters.expert_gate_up(self._index, self._config)
            return self._gated(*self._model.products.experts(rows, first, routing, of_slots=slots))
        [up] = self._model.products.experts(
            rows, [parameters.expert_up(self._index, self._config)], routing, of_slots=slots
        )
        return self._model.activated(self._index, up)

    def _gated(self, gate: Expr, up: Expr) -> Expr:
        """Return the operand of the experts' last matmul."""
        emit, clamped = self._model.builder.emit, self._config.clamped
        if clamped is None:
            return emit(R.multiply(self._model.activated(self._index, gate), up))
        limit, slope = clamped
        gate, up = emit(R.minimum(gate, number(limit))), emit(R.clip(up, -limit, limit))
        opened = emit(R.sigmoid(emit(R.multiply(gate, number(slope)))))
        return emit(R.multiply(emit(R.add(up, number(1.0))), emit(R.multiply(gate, opened))))

    def _sparse_weights(self, scores: Expr, chosen: Expr) -> Expr:
        """Return the weights (n, 2) for scores (n, experts) and the chosen ones (n, 2), the larger first."""
        emit = self._model.builder.emit
        assert self._config.jitter is not None
        limit, one, zero = (relax.const(each, "float32") for each in (2 * self._config.jitter, 1.0, 0.0))
        first, second = (
            emit(R.strided_slice(chosen, axes=[1], begin=[at], end=[at + 1], assume_inbound=True)) for at in (0, 1)
        )
        weights = []
        for best in (first, second):
            least = emit(R.maximum(emit(R.abs(scores)), best))
            below = emit(R.divide(emit(R.subtract(best, scores)), least))
            # The second sum excludes the expert chosen first, whose score is larger.
            left_out = emit(R.logical_or(emit(R.greater(below, limit)), emit(R.greater(scores, best))))
            shares = emit(R.where(left_out, zero, emit(R.exp(emit(R.subtract(scores, best))))))
            weights.append(emit(R.sum(shares, -1, keepdims=True)))
        equal = emit(R.where(emit(R.equal(first, second)), one, zero))  # or equal, if it is part of the sum
        sums = emit(R.concat([weights[0], emit(R.subtract(weights[1], equal))], axis=1))
        return emit(R.divide(one, sums))

    def _shared(self, x: Expr) -> Expr:
        """Apply the shared MLP."""
        model, config, parameters = self._model, self._config, self._model.parameters
        down = parameters.shared_down(self._index, config)
        if model.config.gated:
            output = _gated(model, self._index, x, parameters.shared_gate_up(self._index, config), down)
        else:
            output = _plain(model, self._index, x, parameters.shared_up(self._index, config), down)
        if not config.shared_gate:
            return output
        gate = model.products.exact(x, parameters.shared_router(self._index))
        return model.builder.emit(R.multiply(output, model.builder.emit(R.sigmoid(gate))))
