"""A quantization session of one model: its statistics, the sensitivity and times of its layers, and its candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tvm.ir import IRModule

from compiler.compression.job import Sample
from compiler.compression.quantization.affine import Affine, Array, QuantizedWeight, quantize_weight
from compiler.compression.quantization.calibration import (
    Compile,
    ModuleWithTaps,
    Scheme,
    Statistics,
    get_calibrator,
    observe,
    parameters_of,
)
from compiler.compression.quantization.corrections import bias_correction, equalize, smooth
from compiler.compression.quantization.insertion import Numbers, insert_pairs, place_integer_only
from compiler.compression.quantization.layer_choice import LayerChoice
from compiler.compression.quantization.layer_times import LayerTime
from compiler.compression.quantization.layers import Layer, LayerGraph, Placement, find_layers, place
from compiler.compression.quantization.rounding import GramMatrices, adarounded
from compiler.compression.quantization.sensitivity import measure_sensitivity
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.integers.compute_with_int16 import sums_fit
from compiler.passes.rewriting.graph import Var
from compiler.runtime import Module
from targets.splitting import slices_for_splits

# A tensor that shares the range of one that is this many times wider would lose two bits.
_WIDEST_TIE = 4.0


@dataclass(frozen=True)
class Candidate:
    """A version of the model with some layers in float."""

    mod: IRModule
    module: Module
    placement: Placement
    numbers: Numbers[QuantizedWeight]


class Session(LayerChoice):
    """Calibrates on creation; `candidate(n)` quantizes all layers except the n most sensitive ones, `candidate(n,
    True)` makes those read 16-bit integers if that is exact.

    Attributes:
        model: the float model after equalization and smoothing; `original` is the model before.
        statistics: statistics of the float tensors that may be quantized.
        float_outputs: outputs of the float model, one dictionary per sample.
        sensitivity: decibels by the layer's name, once `rank` has measured them.
        in_float: reasons, by name, for layers that stay in float regardless of measurements.
        times: times by the layer's name, if layers were compared.
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
                report("calibrate the smoothed layers")
                self._calibrate(replace(model, mod=mod))
        self.refuse_weights()
        self.refuse_data([site for site, seen in self.statistics.items() if not seen.is_finite])

    def _calibrate(self, model: ImportedModel) -> None:
        """Set the float model and collect its statistics."""
        self.model = model
        self.graph: LayerGraph = find_layers(model.mod, self.scheme.operators, model.nodes)
        if self.scheme.integer_only:
            self.graph.look_ups.clear()  # an integer-only accelerator's integers come from its operators
        placement = self.place()
        channels = {
            layer.data: int(layer.data.ty.ndim) - 1 if layer.operator.is_matrix else 1 for layer in self.graph.layers
        }
        results = [layer.variable for layer in self.choices]
        # One compilation serves the calibration and the noise in the report.
        self.tapped = ModuleWithTaps(model, model.mod, list(dict.fromkeys([*placement.sites, *results])), self.compile)
        self._grams = GramMatrices(self.graph.layers if "adaround" in self.techniques else ())
        self.statistics: dict[Var, Statistics]
        self.statistics, self.float_outputs = observe(
            self.tapped, self.samples, placement.sites, channels, self._grams.add
        )

    def place(self, in_float: Collection[str] = ()) -> Placement:
        """Positions at which tensors are quantized."""
        if self.scheme.integer_only:
            return place_integer_only(self.model.mod, self.graph, in_float, self.scheme.operators)
        return place(self.graph, in_float)

    @cached_property
    def float_module(self) -> Module:
        """The float model as compiled without quantization."""
        return self.compile(self.original)

    def rank(self, samples: int) -> None:
        """Measure the cost of quantizing only each layer."""
        if not self.sensitivity:
            placement = self.place(self.in_float)
            numbers = self.numbers(placement)
            self.sensitivity = measure_sensitivity(self.model, placement, numbers, self.samples[:samples], self.compile)

    def candidate(self, count: int, wide: bool = False) -> Candidate:
        """The model with the `count` most sensitive layers in float, or with 16-bit data; cached."""
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
        """Scales of all tensors of a placement, and corrections; the sites in `wide` have 16 bits."""
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
        if site in wide:  # with 16 bits, rare values need no clipping
            return parameters_of(self.statistics[site].histogram, get_calibrator("min-max"), self._wide_scheme)
        unshared = parameters_of(self.statistics[site].histogram, self._calibrator, self.scheme)
        source = ties.get(site)
        if source is None or source in wide:
            return unshared
        shared = self._activation(source, ties, wide)
        return shared if shared.scale <= unshared.scale * _WIDEST_TIE else unshared

    def rounded_weight(self, layer: Layer) -> QuantizedWeight:
        """The layer's weights as integers."""
        if layer.variable not in self._weights:
            per_channel = self.scheme.per_channel or layer.is_look_up
            rounded = quantize_weight(layer.weight, layer.operator.filters, per_channel=per_channel)
            gram = self._grams.of(layer)
            self._weights[layer.variable] = rounded if gram is None else adarounded(layer, rounded, gram)
        return self._weights[layer.variable]
