"""Sensitivity of layers: each is quantized separately, and the noise at the model's outputs is measured.

One module serves all measurements. It computes each layer as op(x', w) + e op(x', w_q - w) with x' = x + e (x_q - x),
which is exact since the operators are linear in their weights; the switches e are an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.compression.job import Sample
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.calibration import Compile
from compiler.compression.quantization.edit import Emit, edit_main, with_operands
from compiler.compression.quantization.insertion import Dequantizable, Numbers, pair
from compiler.compression.quantization.layers import Layer, Placement
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import as_constant

_SWITCHES = "quantization_switches"


def measure_sensitivity(
    model: ImportedModel,
    placement: Placement,
    numbers: Numbers[Dequantizable],
    samples: Sequence[Sample],
    compile_model: Compile,
) -> dict[str, float]:
    """SNR of the outputs, in decibels, with only that layer quantized, by the layer's name."""
    count = len(placement.layers)
    spec = TensorSpec(_SWITCHES, (count,), "float32")
    mod = switched(model.mod, placement, numbers)
    module = compile_model(replace(model, mod=mod, inputs=[*model.inputs, spec]))
    totals = {layer.name: np.zeros(2) for layer in placement.layers}
    for sample in samples:
        exact = module.run({**sample, _SWITCHES: np.zeros(count, np.float32)})
        for index, layer in enumerate(placement.layers):
            switches = np.zeros(count, np.float32)
            switches[index] = 1
            noisy = module.run({**sample, _SWITCHES: switches})
            for name, values in exact.items():
                if values.dtype.kind == "f":
                    totals[layer.name] += noise_ratio(noisy[name], values)
    return {name: decibels(noise, signal) for name, (noise, signal) in totals.items()}


def switched(mod: IRModule, placement: Placement, numbers: Numbers[Dequantizable]) -> IRModule:
    """`mod` with an input of one number per layer: 0 leaves it in float, 1 quantizes it."""
    switches = relax.Var(_SWITCHES, relax.TensorType([len(placement.layers)], "float32"))
    layers = {layer.variable: (index, layer) for index, layer in enumerate(placement.layers)}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable not in layers:
            return None
        index, layer = layers[variable]
        chosen = emit(relax.op.strided_slice(switches, [0], [index], [index + 1]))
        switch = emit(relax.op.reshape(chosen, ()))
        return _switched(layer, call, switch, numbers, emit)

    return edit_main(mod, edit, inputs=[switches])


def _switched(layer: Layer, call: Call, switch: Var, numbers: Numbers[Dequantizable], emit: Emit) -> Expr:
    weight = numbers.weights[layer.variable]
    data = layer.data
    if layer.data in numbers.activations:
        error = emit(relax.op.subtract(pair(layer.data, numbers.activations[layer.data], emit), layer.data))
        data = emit(relax.op.add(layer.data, emit(relax.op.multiply(error, switch))))
    change = as_constant((weight.dequantized() - layer.weight).astype(np.float32))
    product = layer.operator
    plain = emit(with_operands(call, {product.data: data}))
    difference = emit(with_operands(call, {product.data: data, product.weight: change}))
    return relax.op.add(plain, emit(relax.op.multiply(difference, switch)))
