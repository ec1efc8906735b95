"""A net as a graph with removable groups of channels, heads and residual layers: applies configs to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from compiler.compression.job import Job
from compiler.compression.model import weight_names
from compiler.compression.pruning.dependencies import Cell, Dependencies, find_dependencies
from compiler.compression.pruning.layers import ResidualLayer, find_residual_layers, without_layers
from compiler.compression.pruning.plan import rounded_count
from compiler.compression.pruning.shrink import shrink
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.quantization.session import Session
from compiler.driver.compile import compile as compile_model
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.rewriting.graph import Call, Expr, Var, operator_name
from compiler.passes.rewriting.matching import Array, array_of, as_constant, shape_of
from compiler.searching.knobs import Config, Knob
from compiler.searching.layer_table import channels_at_once
from compiler.searching.precision import Precisions
from compiler.searching.settings import Space
from compiler.support.accuracy import score as score_of

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")


@dataclass
class SearchGraph:
    """A graph with its prunable groups.

    Attributes:
        model: the imported model; in canonical form if it will be quantized.
        found: dependencies between units.
        cells: groups of units that share a knob, by the name of their first weight.
        order: the units of each cell, the least important first.
    """

    model: ImportedModel
    found: Dependencies
    cells: dict[str, Cell]
    order: dict[str, Array]
    _layers: dict[str, ResidualLayer] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ImportedModel, usable: Collection[int] | None = None) -> SearchGraph:
        """Create the search graph of an imported model.

        Args:
            usable: indices, in the graph's order, of the producers whose weights may lose units, as output or input;
            None:
                all.
        """
        dependencies = find_dependencies(model.mod, weight_names(model))
        untraced = (
            () if usable is None else (each for index, each in enumerate(dependencies.producers) if index not in usable)
        )
        bound = dependencies.units_of(each.constant for each in untraced)
        cells: dict[str, Cell] = {}
        for cell in dependencies.cells:
            if len(cell.units) > 1 and not bound.intersection(cell.units.tolist()):
                cells[_free_name(cell.name.rsplit(" ", 1)[0], cells)] = cell
        scores = dependencies.totals(_squares(dependencies))
        order = {name: cell.units[np.argsort(scores[cell.units], kind="stable")] for name, cell in cells.items()}
        graph = cls(model, dependencies, cells, order)
        graph._layers = {layer.name: layer for layer in find_residual_layers(model)}
        return graph

    def reorder(self, known: dict[tuple[str, int], Array]) -> None:
        """Remove units of groups in `known` (by name and size) in its order; other groups' orders are added."""
        for name, cell in self.cells.items():
            ascending = np.argsort(cell.units)
            indices = ascending[np.searchsorted(cell.units, self.order[name], sorter=ascending)]
            order = known.setdefault((name, len(cell.units)), indices)
            self.order[name] = cell.units[order]

    @property
    def residual_layers(self) -> dict[str, ResidualLayer]:
        """The residual layers by name."""
        return self._layers

    def knobs(self, space: Space, lanes: int) -> list[Knob]:
        """Knobs of the structure: channels, heads, layers and filters. `lanes`: number of channels that the target
        computes at once: larger counts are kept in multiples of it."""
        knobs = []
        inner = self._inner_cells()
        expansion = space.channels if space.expansion is None else space.expansion
        for name, cell in self.cells.items():
            kind = "heads" if cell.kind == "heads" else "expansion" if name in inner else "channels"
            shares = {"heads": space.heads, "expansion": expansion, "channels": space.channels}[kind]
            size = len(cell.units)
            gone = (rounded_count(round((1 - share) * size), size, cell.width, lanes) for share in shares)
            counts = {size - int(each) for each in gone}
            knobs.append(Knob(f"{kind} {name}", kind, (*sorted(counts - {size}), size)))
        if space.layers:
            knobs += [Knob(f"layer {name}", "layer", (False, True)) for name in self._layers]
        if space.kernels:
            knobs += self._kernel_knobs(space.kernels)
        return [knob for knob in knobs if len(knob.options) > 1 and not _is_kept(knob.name, space.keep)]

    def _inner_cells(self) -> set[str]:
        """Cells whose weights are all inside residual layers, and whose channels do not reach the sum."""
        weights = {weight for layer in self._layers.values() for weight in layer.weights}
        inner = set()
        for name, cell in self.cells.items():
            units = set(cell.units.tolist())
            givers = [
                producer.constant
                for producer in self.found.producers
                if producer.labels is not None and units.intersection(self.found.units[producer.labels].tolist())
            ]
            if givers and all(each in weights for each in givers):
                inner.add(name)
        return inner

    def _kernel_knobs(self, sizes: Sequence[int]) -> list[Knob]:
        knobs = []
        for layer in find_layers(self.model.mod, nodes=self.model.nodes).layers:
            whole = _kernel_of(layer)
            usable = tuple(size for size in sorted(set(sizes)) if whole and size < whole and _can_crop(layer, size))
            knobs.append(Knob(f"kernel {layer.name}", "kernel", (*usable, whole)))
        return knobs

    def removed(self, config: Config) -> Array:
        """A flag for each unit, True if it is removed."""
        gone = np.zeros(int(self.found.units.max(initial=0)) + 1, np.bool_)
        for name, cell in self.cells.items():
            for kind in ("channels", "expansion", "heads"):
                kept = config.get(f"{kind} {name}")
                if kept is not None:
                    gone[self.order[name][: len(cell.units) - int(kept)]] = True
        return gone

    def dropped(self, config: Config) -> list[str]:
        """The residual layers that are removed."""
        return [name for name in self._layers if config.get(f"layer {name}") is False]

    def realized(self, config: Config) -> ImportedModel:
        """The float model reduced according to the config."""
        return reduced(self.model, self.found, self.removed(config), config)


def reduced(model: ImportedModel, found: Dependencies, removed: Array, config: Config) -> ImportedModel:
    """A model without the units marked in `removed` and the residual layers that the config drops, with its filter
    sizes. `found`: dependencies of `model`."""
    model = replace(model, mod=shrink(found, removed))
    if dropped := {name.removeprefix("layer ") for name, kept in config.items() if kept is False}:
        layers = [each for each in find_residual_layers(model) if each.name in dropped]
        model = replace(model, mod=without_layers(model.mod, layers))
    kernels = {name.removeprefix("kernel "): int(size) for name, size in config.items() if name.startswith("kernel ")}
    return with_kernels(model, kernels) if kernels else model


def _squares(dependencies: Dependencies) -> dict[GenericConst, Array]:
    """Importance of the weights of matmuls and convolutions, element by element."""
    return {
        each.constant: array_of(each.constant).astype(np.float64) ** 2
        for each in dependencies.producers
        if array_of(each.constant).ndim >= 2
    }


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} #{number}"
    return free


def _is_kept(name: str, keep: Sequence[str]) -> bool:
    own = name.split(" ", 1)[1]
    return any(own == each or own.startswith(f"{each}.") for each in keep)


def _kernel_of(layer: Layer) -> int:
    """The size of a convolution's square filter; 0 for anything else."""
    if operator_name(layer.call) not in _CONVOLUTIONS:
        return 0
    sizes = set(layer.weight.shape[2:])
    return int(sizes.pop()) if len(sizes) == 1 else 0


def _can_crop(layer: Layer, size: int) -> bool:
    attrs = layer.call.attrs
    less = (_kernel_of(layer) - size) // 2
    rank = layer.weight.ndim - 2
    dilation = [int(each) for each in attrs.dilation]
    return all(int(pad) >= less * dilation[index % rank] for index, pad in enumerate(attrs.padding)) and (
        (_kernel_of(layer) - size) % 2 == 0
    )


def with_kernels(model: ImportedModel, sizes: Mapping[str, int]) -> ImportedModel:
    """The model with the filters of these layers cropped to the given sizes around their centers."""
    layers = {layer.variable: layer for layer in find_layers(model.mod, nodes=model.nodes).layers}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        layer = layers.get(variable)
        if layer is None or sizes.get(layer.name, 0) in (0, _kernel_of(layer)):
            return None
        return _cropped(layer, sizes[layer.name])

    return replace(model, mod=edit_main(model.mod, edit))


def _cropped(layer: Layer, size: int) -> Expr:
    less = (_kernel_of(layer) - size) // 2
    attrs, weight = layer.call.attrs, layer.weight
    rank = weight.ndim - 2
    inner = (slice(None), slice(None), *[slice(less, less + size)] * rank)
    dilation = [int(each) for each in attrs.dilation]
    padding = [int(pad) - less * dilation[index % rank] for index, pad in enumerate(attrs.padding)]
    make = getattr(relax.op.nn, str(layer.call.op.name).removeprefix("relax.nn."))
    return make(
        layer.data,
        as_constant(np.ascontiguousarray(weight[inner])),
        strides=[int(each) for each in attrs.strides],
        padding=padding,
        dilation=dilation,
        groups=int(attrs.groups),
        data_layout=str(attrs.data_layout),
        kernel_layout=str(attrs.kernel_layout),
        out_layout=str(attrs.out_layout),
        out_dtype=attrs.out_dtype,
    )


def with_resolution(model: ImportedModel, name: str, shape: Sequence[int]) -> ImportedModel:
    """The model after a bilinear scaling of an image, whose input then has the size `shape` (N, C, H, W)."""
    position = next(index for index, spec in enumerate(model.inputs) if spec.name == name)
    main = model.mod["main"]
    inner = main.params[position]
    height, width = (int(each) for each in (shape_of(inner) or ())[2:])
    outer = relax.Var(str(inner.name), relax.TensorType(tuple(shape), inner.ty.dtype))
    builder = relax.BlockBuilder(model.mod)
    scaled = builder.normalize(
        relax.op.image.resize2d(
            outer, (height, width), layout="NCHW", method="linear", coordinate_transformation_mode="half_pixel"
        )
    )
    blocks = [relax.BindingBlock([relax.VarBinding(inner, scaled)]), *main.body.blocks]
    params = [outer if index == position else each for index, each in enumerate(main.params)]
    function = relax.Function(params, relax.SeqExpr(blocks, main.body.body), main.ret_ty, main.is_pure, main.attrs)
    mod = model.mod.clone()
    mod.update_func(mod.get_global_var("main"), function)
    inputs = [
        replace(spec, shape=tuple(shape)) if index == position else spec for index, spec in enumerate(model.inputs)
    ]
    return replace(model, mod=relax.transform.Normalize()(mod), inputs=inputs)


# A model of any source in a search: each candidate is a graph, and is compiled for this machine to be scored.


class GraphNet:
    """A model and its space. `job`: job of the original model."""

    def __init__(self, job: Job, space: Space, precisions: Precisions) -> None:
        self.job, self.precisions = job, precisions
        self.graph = SearchGraph.of(job.model)
        lanes = channels_at_once(precisions.target)
        self.knobs: list[Knob] = [*self.graph.knobs(space, lanes), *precisions.knobs(job.model, space, space.keep)]

    def model(self, config: Config) -> ImportedModel:
        """A candidate in the form that is compiled."""
        return self.precisions.applied(self.graph.realized(config), config)

    def floats(self, config: Config) -> ImportedModel:
        """A candidate before quantization."""
        return self.graph.realized(config)

    def score(self, config: Config) -> float:
        """Score of the candidate by `evaluate`. Raises OptionError if it fails."""
        evaluate = self.job.evaluate
        assert evaluate is not None
        model = self.floats(config) if self.precisions.scheme.integer_only else self.model(config)
        module = compile_model(model, "host", threads=self.job.threads, progress=None)
        return score_of(evaluate, module.run)


def calibrated(job: Job, precisions: Precisions) -> Precisions:
    """A copy with the ranges of activations on the calibration."""
    session = Session(job.model, job.samples, precisions.scheme, "mse", (), job.compile, job.report)
    numbers = session.numbers(session.place())
    ranges = {str(site.name): affine for site, affine in numbers.activations.items()}
    return Precisions(precisions.target, ranges)
