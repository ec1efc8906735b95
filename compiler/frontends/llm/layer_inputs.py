"""Per-layer embeddings of tokens (Gemma 3n and 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import relax
from tvm.relax import op as R

from compiler.frontends.llm.config import LayerInputs
from compiler.frontends.llm.emitter import Emitter

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


def layer_inputs(model: Emitter, config: LayerInputs, tokens: Expr, embedded: Expr) -> list[Expr]:
    """Return the input (1, n, width) of each layer.

    It is the sum, divided by sqrt(2), of an embedding of the token and a normalized projection of `embedded`, the first
    layer's input: (1, n, hidden).
    """
    emit, parameters, products = model.builder.emit, model.parameters, model.products
    layers, width = len(model.config.layers), config.width
    if config.vocabulary < model.config.vocabulary:
        known = emit(R.less(tokens, relax.const(config.vocabulary, "int64")))
        tokens = emit(R.where(known, tokens, relax.const(0, "int64")))
    rows = products.rows(products.table(parameters.layer_embedding(config)), tokens)
    shape = (1, rows.ty.shape[1], layers, width)
    token_rows = model.scaled(emit(R.reshape(rows, shape)), math.sqrt(width))
    projected = model.scaled(products.product(embedded, parameters.layer_model(config)), model.config.hidden**-0.5)
    projected = model.normalized(emit(R.reshape(projected, shape)), parameters.layer_norm(config))
    all_layers = emit(
        R.reshape(model.scaled(emit(R.add(projected, token_rows)), math.sqrt(0.5)), (*shape[:2], layers * width))
    )
    return [
        emit(R.strided_slice(all_layers, axes=[2], begin=[at], end=[at + width], assume_inbound=True))
        for at in range(0, layers * width, width)
    ]


def layer_update(model: Emitter, index: int, config: LayerInputs, x: Expr, own: Expr) -> Expr:
    """Return a layer's update from its own input: (1, n, hidden) and (1, n, width) -> (1, n, hidden)."""
    parameters, products, hidden = model.parameters, model.products, model.config.hidden
    gate = products.product(x, parameters.linear(index, "layer_gate", config.width, hidden))
    gated = model.builder.emit(R.multiply(model.activated(index, gate), own))
    update = products.product(gated, parameters.linear(index, "layer_out", hidden, config.width))
    return model.normed(index, "layer_out_norm", update)
