"""A precision for each layer: applied to candidates during the search, and by `quantize` at the end.

Also quantizes a model with the same scale everywhere: its results are meaningless, but its cost on an accelerator is
that of the calibrated one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tvm import relax
from tvm.ir import Op

import targets
from compiler.compression.quantization.affine import Affine, QuantizedWeight, quantize_weight
from compiler.compression.quantization.calibration import Scheme, scheme_for
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.insertion import Numbers, insert_pairs, place_integer_only
from compiler.compression.quantization.layers import Layer, Placement, find_layers, place
from compiler.compression.quantization.schemes import RoundedLayer, SchemeOptions, make_scheme
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.searching.knobs import Config, Knob
from compiler.searching.settings import Space
from targets.splitting import slices_for_splits

# The scheme of `quantize` for each precision.
SCHEMES = {"int8": "static-int8", "int4": "weight-int4", "bf16": "bfloat16"}
_LAYERWISE = SchemeOptions(group=64, scales="float16", rounding="nearest")
# Range of activations if unknown. Costs do not depend on the range itself, but on whether a kernel rescales: as with
# calibrated ranges, no two steps are equal, and the center of a range is not 0.
_STEP, _OFF_CENTRE = 1 / 32, 3


@dataclass
class Precisions:
    """Quantizes layers of candidates.

    Attributes:
        target: the target, which determines the integer scheme.
        ranges: ranges of activations, by the names of their variables; unknown ones get distinct steps.
    """

    target: targets.Target
    ranges: Mapping[str, Affine] = field(default_factory=dict)

    @property
    def scheme(self) -> Scheme:
        """Integer scheme of the target."""
        return scheme_for(self.target)

    def knobs(self, model: ImportedModel, space: Space, keep: Sequence[str] = ()) -> list[Knob]:
        """One knob for each layer that has a choice. `model` is in canonical form."""
        options = tuple(dict.fromkeys(space.precision))
        if not options or options == ("float32",):
            return []
        if self.scheme.integer_only:
            return []  # everything is 8-bit
        return [
            Knob(f"precision {layer.name}", "precision", allowed)
            for layer in find_layers(model.mod, nodes=model.nodes).layers
            if not any(layer.name == each or layer.name.startswith(f"{each}.") for each in keep)
            and len(allowed := tuple(each for each in options if _can_have(layer, each))) > 1
        ]

    def applied(self, model: ImportedModel, config: Config) -> ImportedModel:
        """The canonical model with its layers quantized according to the config; completely if the target only supports
        integers."""
        precisions = precisions_in(config)
        if self.scheme.integer_only:
            return uncalibrated(model, self.target)
        by_scheme: dict[str, list[str]] = {}
        for name, precision in precisions.items():
            by_scheme.setdefault(precision, []).append(name)
        for precision in ("int4", "bf16"):
            if precision in by_scheme:
                model = _with_weights(model, SCHEMES[precision], by_scheme[precision])
        if "int8" in by_scheme:
            model = self._with_int8(model, by_scheme["int8"])
        return model

    def _with_int8(self, model: ImportedModel, names: Sequence[str]) -> ImportedModel:
        graph = find_layers(model.mod, self.scheme.operators, model.nodes)
        graph.look_ups.clear()
        placement = place(graph, {layer.name for layer in graph.layers} - set(names))
        values = {binding.var: binding.value for block in model.mod["main"].body.blocks for binding in block.bindings}
        positive = {site for site in placement.sites if is_positive(values.get(site))}
        return replace(model, mod=insert_pairs(model.mod, placement, self._numbers(placement, positive)))

    def _numbers(self, placement: Placement, positive: Collection[Var]) -> Numbers[QuantizedWeight]:
        scheme = self.scheme
        least, zero = (0, 128) if scheme.activations == "uint8" else (-128, 0)
        if not scheme.symmetric_activations:
            zero += _OFF_CENTRE

        def unknown(index: int, site: Var) -> Affine:
            zero_point = least if site in positive and not scheme.symmetric_activations else zero
            return Affine(scheme.activations, _STEP * (1 + index / 64), zero_point)

        own = {site: unknown(index, site) for index, site in enumerate(placement.sites)}
        sites = {site: self.ranges.get(str(site.name), own[_first_of(site, placement.ties)]) for site in own}
        weights = {
            layer.variable: quantize_weight(
                layer.weight, layer.operator.filters, per_channel=scheme.per_channel or layer.is_look_up
            )
            for layer in placement.layers
        }
        return Numbers(sites, weights, {})


def _first_of(site: Var, ties: Mapping[Var, Var]) -> Var:
    """The site that determines a site's range."""
    while site in ties:
        site = ties[site]
    return site


def precisions_in(config: Config) -> dict[str, str]:
    """The precision of each layer that is not float32."""
    return {
        name.removeprefix("precision "): str(option)
        for name, option in config.items()
        if name.startswith("precision ") and option != "float32"
    }


def _can_have(layer: Layer, precision: str) -> bool:
    if precision in ("float32", "int8"):
        return True
    return make_scheme(SCHEMES[precision], _LAYERWISE).refuses(layer) is None


def _with_weights(model: ImportedModel, scheme: str, names: Sequence[str]) -> ImportedModel:
    """The named layers with their weights rounded by a weight-only scheme."""
    rounds = make_scheme(scheme, _LAYERWISE)
    layer_names = set(names)
    layers = {
        layer.variable: layer
        for layer in find_layers(model.mod, nodes=model.nodes).layers
        if layer.name in layer_names and rounds.refuses(layer) is None
    }

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        layer = layers.get(variable)
        if layer is None:
            return None
        rounded: RoundedLayer = rounds.rounded(layer, None)
        return rounded.rewritten(layer, call, emit)

    return replace(model, mod=edit_main(model.mod, edit))


_SCALE = 0.05


def uncalibrated(model: ImportedModel, target: targets.Target) -> ImportedModel:
    """A float model with every tensor quantized to int8, like `quantize` does for an integer-only accelerator, but
    without
    samples: only for costs."""
    context = PipelineContext(target=target, machine=target.machine, options=PassOptions(checks=model.checks))
    mod = slices_for_splits(run_pipeline(model.mod, context, until="canonicalize").mod)
    scheme = scheme_for(target)
    graph = find_layers(mod, scheme.operators, model.nodes)
    graph.look_ups.clear()
    placement = place_integer_only(mod, graph, (), scheme.operators)
    values = {binding.var: binding.value for block in mod["main"].body.blocks for binding in block.bindings}
    numbers = Numbers(
        # For nonnegative values the smallest integer is 0, as after calibration: clamps then cost nothing.
        {site: Affine("int8", _SCALE, -128 if is_positive(values.get(site)) else 0) for site in placement.sites},
        {
            layer.variable: quantize_weight(layer.weight, layer.operator.filters, per_channel=scheme.per_channel)
            for layer in placement.layers
        },
        {},
    )
    return replace(model, mod=insert_pairs(mod, placement, numbers))


def is_positive(value: Expr | None) -> bool:
    """True if an operator's results are never negative."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, Op):
        return False
    name = str(value.op.name)
    if name == "relax.clip":
        return float(value.args[1].value) >= 0
    return name in ("relax.nn.relu", "relax.nn.relu6", "relax.sigmoid", "relax.nn.softmax", "relax.abs", "relax.exp")
