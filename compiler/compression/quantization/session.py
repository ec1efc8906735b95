"""A quantization session of one model: its statistics, the sensitivity and times of its layers, and its candidates.

Corrections come before and after rounding: biases, equalization across layers, SmoothQuant. Sensitivity of layers:
each is quantized alone, and the noise at the model's outputs is measured.

One module serves all measurements. It computes each layer as op(x', w) + e op(x', w_q - w) with x' = x + e (x_q - x),
which is exact for a product since it is linear in its weights, and takes the switches e as an input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.job import Sample
from compiler.compression.quantization.affine import (
    Affine,
    Array,
    QuantizedWeight,
    decibels,
    noise_ratio,
    quantize_weight,
)
from compiler.compression.quantization.calibration import (
    Compile,
    Scheme,
    Statistics,
    Tapped,
    get_calibrator,
    observe,
    parameters_of,
)
from compiler.compression.quantization.edit import Emit, edit_main, with_operands
from compiler.compression.quantization.insertion import Dequantizable, Numbers, insert_pairs, pair, place_integer_only
from compiler.compression.quantization.layer_choice import LayerChoice
from compiler.compression.quantization.layer_times import LayerTime
from compiler.compression.quantization.layers import Layer, LayerGraph, Placement, find_layers, place
from compiler.compression.quantization.rounding import GramMatrices, adarounded
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.integers.compute_with_int16 import sums_fit
from compiler.passes.rewriting.graph import Call, Expr, Var, operator_name
from compiler.passes.rewriting.matching import array_of, as_constant
from compiler.runtime import Module
from targets.splitting import slices_for_splits

# A tensor that shares the range of one that is this many times wider would be left with two bits less.
_WIDEST_TIE = 4.0


@dataclass(frozen=True)
class Candidate:
    """A version of the model with some layers in float."""

    mod: IRModule
    module: Module
    placement: Placement
    numbers: Numbers[QuantizedWeight]


class Session(LayerChoice):
    """Calibrates when made; `candidate(n)` quantizes all layers but the n most sensitive ones, `candidate(n, True)` has
    those read 16-bit integers where that is exact.

    Attributes:
        model: the float model with what was equalized and smoothed; `original` as it came.
        statistics: of the float tensors that may be quantized.
        float_outputs: of the float model, one dictionary per sample.
        sensitivity: decibels by the layer's name, once `rank` has measured them.
        in_float: reasons by name, of the layers that stay in float whatever is measured.
        times: by the layer's name, where layers were compared.
    """

    def __init__(
        self,
        model: ImportedModel,
        samples: Sequence[Sample],
        scheme: Scheme,
        method: str,
        techniques: Collection[str],
        compile_model: Compile,
        report: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.original, self.samples, self.scheme = model, samples, scheme
        self.method, self.techniques = method, tuple(techniques)
        self.compile = compile_model
        self._calibrator = get_calibrator(method)
        self._wide_scheme = replace(scheme, activations="int16", symmetric_activations=True)
        self.tries_int16 = "int16" in techniques
        self.times: dict[str, LayerTime] = {}
        self._candidates: dict[tuple[int, bool, frozenset[str]], Candidate] = {}
        self._weights: dict[Var, QuantizedWeight] = {}
        if scheme.integer_only:
            model = replace(model, mod=slices_for_splits(model.mod))
        if "equalization" in techniques:
            model = replace(model, mod=equalize(model.mod, find_layers(model.mod, scheme.operators)))
        report("calibrate")
        self._calibrate(model)
        if "smoothing" in techniques:
            mod = smooth(model.mod, self.graph.layers, self.statistics)
            if not mod.same_as(model.mod):
                report("calibrate what is smoothed")
                self._calibrate(replace(model, mod=mod))
        self.refuse_weights()
        self.refuse_data([site for site, seen in self.statistics.items() if not seen.is_finite])

    def _calibrate(self, model: ImportedModel) -> None:
        """Take `model` as the float model and look at its tensors."""
        self.model = model
        self.graph: LayerGraph = find_layers(model.mod, self.scheme.operators, model.nodes)
        if self.scheme.integer_only:
            self.graph.look_ups.clear()  # an accelerator's integers are those that its operators make
        placement = self.place()
        channels = {
            layer.data: int(layer.data.ty.ndim) - 1 if layer.operator.is_matrix else 1 for layer in self.graph.layers
        }
        results = [layer.variable for layer in self.choices]
        # One compilation serves the calibration and the noise of the report.
        self.tapped = Tapped(model, model.mod, list(dict.fromkeys([*placement.sites, *results])), self.compile)
        self._grams = GramMatrices(self.graph.layers if "adaround" in self.techniques else ())
        self.statistics: dict[Var, Statistics]
        self.statistics, self.float_outputs = observe(
            self.tapped, self.samples, placement.sites, channels, self._grams.add
        )

    def place(self, in_float: Collection[str] = ()) -> Placement:
        """Positions at which tensors are rounded."""
        if self.scheme.integer_only:
            return place_integer_only(self.model.mod, self.graph, in_float, self.scheme.operators)
        return place(self.graph, in_float)

    @cached_property
    def float_module(self) -> Module:
        """The float model as it would be compiled without quantization."""
        return self.compile(self.original)

    def rank(self, samples: int) -> None:
        """Measure what each layer costs alone."""
        if not self.sensitivity:
            placement = self.place(self.in_float)
            numbers = self.numbers(placement)
            self.sensitivity = measure_sensitivity(self.model, placement, numbers, self.samples[:samples], self.compile)

    def candidate(self, count: int, wide: bool = False) -> Candidate:
        """The model with the `count` most sensitive layers in float, or with 16-bit data; made once."""
        key = (count, wide, frozenset(self.in_float))
        if key not in self._candidates:
            self._candidates = {key: self._made(count, wide)}
        return self._candidates[key]

    def _made(self, count: int, wide: bool) -> Candidate:
        sensitive = self.ranked[:count]
        widened = [layer for layer in sensitive if wide and self._can_widen(layer)]
        placement = self.place({*self.in_float, *(layer.name for layer in sensitive if layer not in widened)})
        numbers = self.numbers(placement, {layer.data for layer in widened})
        mod = insert_pairs(self.model.mod, placement, numbers)
        return Candidate(mod, self.compile(replace(self.model, mod=mod)), placement, numbers)

    def _can_widen(self, layer: Layer) -> bool:
        return not layer.is_look_up and sums_fit(self.rounded_weight(layer).values, layer.operator.filters)

    def numbers(self, placement: Placement, wide: Collection[Var] = ()) -> Numbers[QuantizedWeight]:
        """Scales of all tensors of a placement, and corrections; the sites `wide` have 16 bits."""
        activations = {site: self._activation(site, placement.ties, wide) for site in placement.sites}
        weights = {layer.variable: self.rounded_weight(layer) for layer in placement.layers}
        shifts: dict[Var, Array] = {}
        if "bias-correction" in self.techniques:
            for layer in placement.layers:
                if layer.is_look_up:
                    continue
                means = self.statistics[layer.data].means
                shifts[layer.variable] = bias_correction(layer, weights[layer.variable], means)
        return Numbers(activations, weights, shifts)

    def _activation(self, site: Var, ties: dict[Var, Var], wide: Collection[Var]) -> Affine:
        if site in wide:  # 16 bits need not clip what is rare
            return parameters_of(self.statistics[site].histogram, get_calibrator("min-max"), self._wide_scheme)
        own = parameters_of(self.statistics[site].histogram, self._calibrator, self.scheme)
        source = ties.get(site)
        if source is None or source in wide:
            return own
        shared = self._activation(source, ties, wide)
        return shared if shared.scale <= own.scale * _WIDEST_TIE else own

    def rounded_weight(self, layer: Layer) -> QuantizedWeight:
        """The layer's weights as integers."""
        if layer.variable not in self._weights:
            per_channel = self.scheme.per_channel or layer.is_look_up
            rounded = quantize_weight(layer.weight, layer.operator.filters, per_channel=per_channel)
            gram = self._grams.of(layer)
            self._weights[layer.variable] = rounded if gram is None else adarounded(layer, rounded, gram)
        return self._weights[layer.variable]


# Bias correction: rounding weights shifts the mean of each filter's result; the bias compensates for it.
#
# Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2,
# with the means of the activations measured instead of derived.


def bias_correction(layer: Layer, weight: QuantizedWeight, means: Array) -> Array:
    """Correction of each filter's result: minus the mean effect of the change of its weights.

    Args:
        means: of each channel of the layer's activations. Borders, where padding takes part, are left out of account.
    """
    change = layer.weight.astype(np.float64) - weight.dequantized()
    if layer.operator.is_matrix:  # a matrix (channels, filters)
        return (means @ change).astype(np.float32)
    if layer.operator.filters == 1:  # (channels, filters, ...) of a transposed convolution
        return np.asarray(means @ change.reshape(*change.shape[:2], -1).sum(axis=2), np.float32)
    groups = int(layer.call.attrs.groups)
    sums = change.reshape(change.shape[0], change.shape[1], -1).sum(axis=2)
    of_group = means.reshape(groups, -1)
    return np.einsum("goc,gc->go", sums.reshape(groups, -1, sums.shape[1]), of_group).reshape(-1).astype(np.float32)


# Cross-layer equalization: two convolutions with nothing but a ReLU between share the burden of each channel.
#
#     w_b relu(w_a x + b) => (w_b s) relu((w_a x + b) / s),   s = sqrt(max|w_a| max|w_b|) / max|w_b| a channel
#
# Nagel et al., arXiv:1906.04721, section 4.1. It matters most for weights with one scale for all filters.

# Positive factors pass through these.
_HOMOGENEOUS = ("relax.nn.relu", "relax.nn.leakyrelu")
_ROUNDS = 10


def equalize(mod: IRModule, graph: LayerGraph) -> IRModule:
    """`mod` with other constants that compute the same."""
    pairs = [pair for layer in graph.layers if (pair := _partner(graph, layer)) is not None]
    if not pairs:
        return mod
    weights = {layer.variable: layer.weight.astype(np.float64) for layer in graph.layers}
    scales = {layer.variable: np.ones(layer.weight.shape[0]) for layer, _ in pairs}
    for _ in range(_ROUNDS):
        for first, second in pairs:
            factor = _factor(weights[first.variable], weights[second.variable], second)
            weights[first.variable] /= factor.reshape(-1, *[1] * (first.weight.ndim - 1))
            weights[second.variable] *= _along_inputs(factor, second)
            scales[first.variable] *= factor
    changed = {each.variable for pair in pairs for each in pair}
    biases = {first.bias: scales[first.variable] for first, _ in pairs if first.bias is not None}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable in biases:
            bias = array_of(call.args[1])
            shape = (1, -1, *[1] * (int(variable.ty.ndim) - 2))
            return with_operands(call, {1: as_constant((bias / biases[variable].reshape(shape)).astype(np.float32))})
        if variable in changed:
            return with_operands(call, {1: as_constant(weights[variable].astype(np.float32))})
        return None

    return edit_main(mod, edit)


def _partner(graph: LayerGraph, second: Layer) -> tuple[Layer, Layer] | None:
    """(the convolution before, `second`), where nothing else reads between them and factors pass through."""
    first = next((each for each in graph.layers if each.variable.same_as(graph.root(second.data))), None)
    if first is None or 1 in (first.operator.filters, second.operator.filters):
        return None
    if graph.readers.get(first.variable) != [second.variable]:
        return None
    at = second.data
    while not at.same_as(first.variable):
        call = graph.definitions[at]
        is_bias = first.bias is not None and at.same_as(first.bias)
        if not is_bias and operator_name(call) not in _HOMOGENEOUS:
            return None
        if is_bias and not _adds_to_channels(call, first):
            return None
        at = call.args[0]
    groups = int(second.call.attrs.groups)
    return (first, second) if groups in (1, second.weight.shape[0]) else None


def _adds_to_channels(call: Call, layer: Layer) -> bool:
    """True if the constant added is one number per filter."""
    shape = (1, layer.weight.shape[0], *[1] * (int(call.ty.ndim) - 2))
    constant = call.args[1]
    return isinstance(constant, GenericConst) and array_of(constant).shape in (shape, shape[1:])


def _factor(first: Array, second: Array, layer: Layer) -> Array:
    before = np.abs(first).reshape(first.shape[0], -1).max(axis=1)
    depthwise = int(layer.call.attrs.groups) > 1
    after = np.abs(second if depthwise else second.swapaxes(0, 1)).reshape(before.size, -1).max(axis=1)
    usable = (before > 0) & (after > 0)
    return np.where(usable, np.sqrt(np.where(usable, before / np.where(after > 0, after, 1), 1)), 1.0)


def _along_inputs(factor: Array, layer: Layer) -> Array:
    """The factors of the input channels, shaped to broadcast over the weights."""
    rest = [1] * (layer.weight.ndim - 2)
    depthwise = int(layer.call.attrs.groups) > 1
    return factor.reshape(-1, 1, *rest) if depthwise else factor.reshape(1, -1, *rest)


# SmoothQuant: part of what makes activations hard to quantize moves into the weights, channel by channel.
#
#     x @ w => (x / s) @ (s w),   s = max|x|^strength / max|w|^(1 - strength) a channel
#
# Xiao et al., arXiv:2211.10438, equation 4. The division is part of the kernel that quantizes x.

STRENGTH = 0.5
# Where the largest channel is within this factor of the middle one, there is nothing to smooth.
_UNEVEN = 4.0


def smooth(mod: IRModule, layers: Collection[Layer], statistics: Mapping[Var, Statistics]) -> IRModule:
    """`mod` with the activations of matrix products smoothed where their channels are uneven; the same function."""
    factors = {
        layer.variable: (layer, found)
        for layer in layers
        if layer.operator.is_matrix and (found := smoothing_factors(layer, statistics[layer.data])) is not None
    }
    if not factors:
        return mod

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        if variable not in factors:
            return None
        layer, factor = factors[variable]
        data = emit(relax.op.multiply(layer.data, as_constant((1 / factor).astype(np.float32))))
        weight = as_constant((layer.weight * factor[:, None]).astype(np.float32))
        return with_operands(call, {layer.operator.data: data, layer.operator.weight: weight})

    return edit_main(mod, edit)


def smoothing_factors(layer: Layer, statistics: Statistics) -> Array | None:
    """One positive number per channel, their geometric mean 1; None where the channels are even."""
    largest = statistics.largest.astype(np.float64)
    middle = float(np.median(largest))
    if not largest.size or middle <= 0 or largest.max() < _UNEVEN * middle:
        return None
    # A channel that was never seen to move keeps its scale, near that of the smallest that was.
    activations = np.maximum(largest, 1e-2 * middle)
    weights = np.abs(layer.weight).max(axis=1).astype(np.float64)
    weights = np.maximum(weights, 1e-2 * max(float(np.median(weights)), 1e-30))
    factor = activations**STRENGTH / weights ** (1 - STRENGTH)
    return factor / np.exp(np.log(factor).mean())


_SWITCHES = "quantization_switches"


def measure_sensitivity(
    model: ImportedModel,
    placement: Placement,
    numbers: Numbers[Dequantizable],
    samples: Sequence[Sample],
    compile_model: Compile,
) -> dict[str, float]:
    """Signal to noise at the outputs, in decibels, with that layer alone quantized, by the layer's name."""
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
