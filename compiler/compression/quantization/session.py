"""One model on its way to integers: what was seen of it, what its layers cost, and the candidates made of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tvm.ir import IRModule

from compiler.compression.quantization.affine import Affine, Array, QuantizedWeight, quantize_weight
from compiler.compression.quantization.calibration import Compile, Sample, Tapped, observe
from compiler.compression.quantization.calibrators.registry import get_calibrator, parameters_of
from compiler.compression.quantization.correction import bias_correction
from compiler.compression.quantization.equalization import equalize
from compiler.compression.quantization.everywhere import place_everywhere
from compiler.compression.quantization.insertion import Numbers, insert_pairs
from compiler.compression.quantization.layer_choice import LayerChoice
from compiler.compression.quantization.layers import Layer, LayerGraph, Placement, find_layers, place
from compiler.compression.quantization.scheme import Scheme
from compiler.compression.quantization.sensitivity import measure_sensitivity
from compiler.compression.quantization.smoothing import smooth
from compiler.compression.quantization.statistics import Statistics
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.graph import Var
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
    """Calibrates when made; `candidate(n)` quantizes all layers but the n most sensitive ones.

    Attributes:
        model: the float model with what was equalized and smoothed; `original` as it came.
        statistics: of the float tensors that may be quantized.
        float_outputs: of the float model, a dictionary a sample.
        sensitivity: decibels by the layer's name, once `rank` has measured them.
        in_float: reasons by name, of the layers that the caller wants in float.
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
        self._candidates: dict[int, Candidate] = {}
        self._weights: dict[Var, QuantizedWeight] = {}
        if scheme.everywhere:
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

    def _calibrate(self, model: ImportedModel) -> None:
        """Take `model` as the float model and look at its tensors."""
        self.model = model
        self.graph: LayerGraph = find_layers(model.mod, self.scheme.operators)
        placement = self.place()
        channels = {
            layer.data: int(layer.data.ty.ndim) - 1 if layer.product.is_matrix else 1 for layer in placement.layers
        }
        results = [layer.variable for layer in self.graph.layers]
        # One compilation serves the calibration and the noise of the report.
        self.tapped = Tapped(model, model.mod, list(dict.fromkeys([*placement.sites, *results])), self.compile)
        self.statistics: dict[Var, Statistics]
        self.statistics, self.float_outputs = observe(self.tapped, self.samples, placement.sites, channels)

    def place(self, in_float: Collection[str] = ()) -> Placement:
        """Where tensors are rounded."""
        if self.scheme.everywhere:
            return place_everywhere(self.model.mod, self.graph, in_float, self.scheme.operators)
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

    def candidate(self, count: int) -> Candidate:
        """The model with the `count` most sensitive layers in float; made once."""
        if count not in self._candidates:
            self._candidates = {count: self._made(count)}
        return self._candidates[count]

    def _made(self, count: int) -> Candidate:
        placement = self.place({*self.in_float, *(layer.name for layer in self.ranked[:count])})
        numbers = self.numbers(placement)
        mod = insert_pairs(self.model.mod, placement, numbers)
        return Candidate(mod, self.compile(replace(self.model, mod=mod)), placement, numbers)

    def numbers(self, placement: Placement) -> Numbers[QuantizedWeight]:
        """Scales of all tensors of a placement, and corrections."""
        activations = {site: self._activation(site, placement.ties) for site in placement.sites}
        weights = {layer.variable: self._weight(layer) for layer in placement.layers}
        shifts: dict[Var, Array] = {}
        if "bias-correction" in self.techniques:
            for layer in placement.layers:
                means = self.statistics[layer.data].means
                shifts[layer.variable] = bias_correction(layer, weights[layer.variable], means)
        return Numbers(activations, weights, shifts)

    def _activation(self, site: Var, ties: dict[Var, Var]) -> Affine:
        own = parameters_of(self.statistics[site].histogram, self._calibrator, self.scheme)
        source = ties.get(site)
        if source is None:
            return own
        shared = self._activation(source, ties)
        return shared if shared.scale <= own.scale * _WIDEST_TIE else own

    def _weight(self, layer: Layer) -> QuantizedWeight:
        if layer.variable not in self._weights:
            self._weights[layer.variable] = quantize_weight(
                layer.weight, layer.product.filters, per_channel=self.scheme.per_channel
            )
        return self._weights[layer.variable]
