"""A model whose layers are rounded one by one by a scheme: its candidates, what they cost, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tvm.ir import IRModule

from compiler.compression.job import Sample
from compiler.compression.quantization.affine import Array, decibels, noise_ratio
from compiler.compression.quantization.calibration import Compile, Tapped
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.insertion import Numbers
from compiler.compression.quantization.layer_choice import LayerChoice
from compiler.compression.quantization.layers import Layer, Placement, find_layers
from compiler.compression.quantization.report import LayerReport
from compiler.compression.quantization.rounding import GramMatrices, as_columns
from compiler.compression.quantization.schemes import RoundedLayer, Scheme
from compiler.compression.quantization.sensitivity import measure_sensitivity
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.runtime import Module


@dataclass(frozen=True)
class LayerwiseCandidate:
    """A version of the model with some layers rounded."""

    mod: IRModule
    module: Module
    rounded: Mapping[Var, RoundedLayer]


class LayerwiseSession(LayerChoice):
    """`candidate(n)` rounds all layers but the n most sensitive ones; see `session.Session`.

    Attributes:
        float_outputs: of the float model, one dictionary per sample.
        sensitivity: decibels by the layer's name, with its weights alone rounded, once `rank` has measured them.
    """

    def __init__(
        self,
        model: ImportedModel,
        samples: Sequence[Sample],
        scheme: Scheme,
        compile_model: Compile,
        report: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.model, self.samples, self.scheme, self.compile = model, samples, scheme, compile_model
        self.graph = find_layers(model.mod, nodes=model.nodes)
        self.refuse_weights()
        for layer in self.quantizable:
            if (why := scheme.refuses(layer)) is not None:
                self.in_float[layer.name] = why
        self._rounded: dict[Var, RoundedLayer] = {}
        self._candidates: dict[int, LayerwiseCandidate] = {}
        report("calibrate")
        read = [layer for layer in self.quantizable if not layer.is_look_up and scheme.needs_gram(layer)]
        self._grams = GramMatrices(read)
        if read:
            self.float_outputs = self._observed()
        else:
            self.float_outputs = [dict(self.float_module.run(sample)) for sample in samples]

    def _observed(self) -> list[dict[str, Array]]:
        """The outputs of each sample; sums up the Gram matrices of what the layers read."""
        sites = list(dict.fromkeys(layer.data for layer in self.quantizable if not layer.is_look_up))
        tapped = Tapped(self.model, self.model.mod, sites, self.compile)
        outputs = []
        for sample in self.samples:
            result, tensors = tapped.run(sample)
            outputs.append(result)
            self.refuse_data([site for site, values in tensors.items() if not np.isfinite(values).all()])
            self._grams.add(tensors)
        return outputs

    @cached_property
    def float_module(self) -> Module:
        """The float model as it would be compiled otherwise."""
        return self.compile(self.model)

    def rank(self, samples: int) -> None:
        """Measure what rounding each layer's weights costs alone."""
        if not self.sensitivity:
            layers = tuple(self.quantizable)
            placement = Placement(layers, (), (), {}, {})
            numbers = Numbers({}, {layer.variable: self._layer(layer) for layer in layers}, {})
            self.sensitivity = measure_sensitivity(self.model, placement, numbers, self.samples[:samples], self.compile)

    def candidate(self, count: int, wide: bool = False) -> LayerwiseCandidate:
        """The model with the `count` most sensitive layers in float; the last one is kept. None can be wide."""
        if count not in self._candidates:
            layers = {layer.variable: layer for layer in self.ranked[count:]}
            chosen = {variable: self._layer(layer) for variable, layer in layers.items()}

            def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
                if variable not in chosen:
                    return None
                return chosen[variable].rewritten(layers[variable], call, emit)

            mod = edit_main(self.model.mod, edit)
            self._candidates = {count: LayerwiseCandidate(mod, self.compile(replace(self.model, mod=mod)), chosen)}
        return self._candidates[count]

    def _layer(self, layer: Layer) -> RoundedLayer:
        if layer.variable not in self._rounded:
            self._rounded[layer.variable] = self.scheme.rounded(layer, self._grams.of(layer))
        return self._rounded[layer.variable]

    def layer_reports(self, found: LayerwiseCandidate) -> list[LayerReport]:
        """One entry per layer."""
        reports = [self._layer_report(found, layer) for layer in self.choices]
        return [*reports, *(LayerReport(name, False, reason) for name, reason in self.graph.refused)]

    def _layer_report(self, found: LayerwiseCandidate, layer: Layer) -> LayerReport:
        rounded = found.rounded.get(layer.variable)
        sensitivity = self.sensitivity.get(layer.name)
        if rounded is None:
            most = "one of the most sensitive layers: the limit does not hold with it"
            reason = self.in_float.get(layer.name, most)
            return LayerReport(layer.name, False, reason, sensitivity=sensitivity)
        weight = rounded.dequantized()
        gram = self._grams.of(layer)
        noise = None
        if gram is not None:
            change, whole = (as_columns(layer, each) for each in (weight - layer.weight, layer.weight))
            noise = decibels(_energy(change, gram), _energy(whole, gram))
        return LayerReport(
            layer.name,
            True,
            noise=noise,
            sensitivity=sensitivity,
            weight_noise=decibels(*noise_ratio(weight, layer.weight)),
        )


def _energy(weight: Array, gram: Array) -> float:
    """The sum of squares of the data's products with columns."""
    return float(np.einsum("gkj,gkj->", weight, gram @ weight, dtype=np.float64))
