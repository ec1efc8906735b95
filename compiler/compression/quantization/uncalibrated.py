"""A model rounded with the same scale everywhere: its values mean nothing, and what it costs on an accelerator is what
the calibrated one costs."""

from __future__ import annotations

from dataclasses import replace

from tvm import relax
from tvm.ir import Op

import targets
from compiler.compression.quantization.affine import Affine, quantize_weight
from compiler.compression.quantization.insertion import Numbers, insert_pairs
from compiler.compression.quantization.integer_only import place_integer_only
from compiler.compression.quantization.layers import find_layers
from compiler.compression.quantization.scheme import scheme_for
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from schedules.ir.tvm_types import Expr
from targets.splitting import slices_for_splits

_SCALE = 0.05


def uncalibrated(model: ImportedModel, target: targets.Target) -> ImportedModel:
    """A float model with every tensor rounded to int8 as `quantize` does for an accelerator of integers, without
    samples: for costs alone."""
    context = PipelineContext(target=target, machine=target.machine, options=PassOptions(checks=model.checks))
    mod = slices_for_splits(run_pipeline(model.mod, context, until="canonicalize").mod)
    scheme = scheme_for(target)
    graph = find_layers(mod, scheme.operators, model.nodes)
    graph.look_ups.clear()
    placement = place_integer_only(mod, graph, (), scheme.operators)
    values = {binding.var: binding.value for block in mod["main"].body.blocks for binding in block.bindings}
    numbers = Numbers(
        # Of what is never negative the least integer is 0, as after calibration: limits then cost nothing.
        {site: Affine("int8", _SCALE, -128 if is_positive(values.get(site)) else 0) for site in placement.sites},
        {
            layer.variable: quantize_weight(layer.weight, layer.product.filters, per_channel=scheme.per_channel)
            for layer in placement.layers
        },
        {},
    )
    return replace(model, mod=insert_pairs(mod, placement, numbers))


def is_positive(value: Expr | None) -> bool:
    """True if an operator gives no number below 0."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, Op):
        return False
    name = str(value.op.name)
    if name == "relax.clip":
        return float(value.args[1].value) >= 0
    return name in ("relax.nn.relu", "relax.nn.relu6", "relax.sigmoid", "relax.nn.softmax", "relax.abs", "relax.exp")
