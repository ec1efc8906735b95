"""A torch net in a search: its sub-nets share its weights, are scored by running torch, and become graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from compiler.compression.canonical import canonical
from compiler.compression.job import Job
from compiler.compression.pruning.plan import unit_masks
from compiler.compression.pruning.training import Trained, trained, translated
from compiler.compression.quantization.calibration import Tapped
from compiler.errors import InputError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.graph import Var
from compiler.passes.rewriting.matching import Array
from compiler.runtime.random_inputs import random_inputs
from compiler.searching.choice import choices_of, materialized, select
from compiler.searching.eager import SubNet, computed, has_batch_norm, recalibrated
from compiler.searching.graph import SearchGraph, with_resolution
from compiler.searching.knobs import Config, Knob
from compiler.searching.precision import Precisions, precisions_in
from compiler.searching.settings import Space
from compiler.support.accuracy import Run
from compiler.support.accuracy import score as score_of

_RECALIBRATED = 8  # batches
_TOLERANCE = 1e-3  # of a tensor's largest element, between torch and the compiled graph


@dataclass
class Skeleton:
    """The graph of one selection of choices at one resolution.

    Attributes:
        tagged: of a copy in which every number of every weight is another one: where parameters are in the graph.
        graph: of the net itself.
        modules: names of the torch modules whose outputs residual sums add, by the layer's name.
        size: (height, width) of the images that it takes; None where they are not scaled.
    """

    tagged: Trained
    graph: SearchGraph
    modules: dict[str, str]
    size: tuple[int, int] | None

    def removed_in_tagged(self, config: Config) -> Array:
        """Which units of `tagged.found` go."""
        return translated(self.graph.removed(config), self.graph.found, self.tagged.found.mod)[1]

    def masks(self, config: Config) -> dict[str, Array]:
        """What stays of each parameter, by its name: of channels, heads and filters."""
        kept = unit_masks(self.tagged.found, self.removed_in_tagged(config), self.tagged.places)
        masks = self.tagged.parameter_masks(kept)
        for name, size in config.items():
            if name.startswith("kernel "):
                parameter = f"{name.removeprefix('kernel ')}.weight"
                shapes = {each: value.shape for each, value in self.tagged.parameters()}
                if parameter in shapes:
                    inner = _centre(tuple(shapes[parameter]), int(size))
                    masks[parameter] = masks.get(parameter, np.True_) & inner
        return masks


class TorchNet:
    """The net and its space.

    Args:
        net: a copy that the search may train.
        job: of the net as it came.
        imports: `example_inputs` at the full resolution.
        batches: of inputs alone, for the statistics of batch norms of sub-nets.
    """

    def __init__(
        self,
        net: nn.Module,
        job: Job,
        imports: ImportOptions,
        space: Space,
        precisions: Precisions,
        batches: Sequence[Sequence[Any]],
    ) -> None:
        self.net, self.job, self.imports, self.space, self.precisions = net.eval(), job, imports, space, precisions
        self.batches = [list(each) for each in batches][:_RECALIBRATED]
        self._skeletons: dict[tuple[Any, ...], Skeleton] = {}
        self.knobs: list[Knob] = self._found_knobs()

    def _found_knobs(self) -> list[Knob]:
        blocks = choices_of(self.net)
        knobs = [Knob(f"choice {name}", "choice", tuple(range(len(block)))) for name, block in blocks.items()]
        if self.space.resolution:
            knobs.append(Knob("resolution", "resolution", (*sorted({*self.space.resolution} - {1.0}), 1.0)))
        lanes = self.job.target.machine.lanes("float32")
        inner: dict[str, Knob] = {}
        for form in range(max((len(block) for block in blocks.values()), default=1)):
            config = {f"choice {name}": min(form, len(block) - 1) for name, block in blocks.items()}
            skeleton = self.skeleton(config)
            without_module = {f"layer {name}" for name in skeleton.graph.residual_layers} - {
                f"layer {name}" for name in skeleton.modules
            }
            model = canonical(skeleton.graph.model, self.job.target)
            for knob in [
                *skeleton.graph.knobs(self.space, lanes),
                *self.precisions.knobs(model, self.space, self.space.keep),
            ]:
                if knob.name not in without_module:
                    inner.setdefault(knob.name, knob)
        return [*knobs, *inner.values()]

    def skeleton(self, config: Config) -> Skeleton:
        """That of the config's choices and resolution; made once."""
        share = config.get("resolution", 1.0)
        key = (share, *(config.get(f"choice {name}") for name in choices_of(self.net)))
        if key not in self._skeletons:
            self._skeletons[key] = self._made(config, float(share))
        return self._skeletons[key]

    def _made(self, config: Config, share: float) -> Skeleton:
        net = materialized(self.net, config)
        size, imports = None, self.imports
        if share != 1.0:
            size, imports = _scaled_example(self.imports, share)
        model = imports.load(net)
        tagged = trained(net, imports)
        usable = {
            index for index, each in enumerate(tagged.found.producers) if each.constant in tagged.places
        }
        graph = SearchGraph.of(model, usable)
        modules = self._modules_of_layers(net, graph) if self.space.layers and graph.residual_layers else {}
        return Skeleton(tagged, graph, modules, size)

    def _modules_of_layers(self, net: nn.Module, graph: SearchGraph) -> dict[str, str]:
        """By the layer's name the module whose output the sum adds, found by comparing all tensors of one run."""
        added: dict[str, Var] = {}
        definitions = _definitions(graph.model)
        for name, layer in graph.residual_layers.items():
            left, right = definitions[layer.result].args
            added[name] = right if left.same_as(layer.passed) else left
        tapped = Tapped(graph.model, graph.model.mod, list(dict.fromkeys(added.values())), self.job.compile)
        sample = random_inputs(graph.model.inputs, indices=graph.model.indices)
        tensors = tapped.run(sample)[1]
        outputs = _outputs_of_modules(net, [torch.from_numpy(sample[spec.name]) for spec in graph.model.inputs])
        return {
            name: module
            for name, variable in added.items()
            if (module := _like(tensors[variable], outputs)) is not None
        }

    def sub_net(self, config: Config) -> SubNet:
        """How torch computes a config."""
        skeleton = self.skeleton(config)
        masks = {name: torch.from_numpy(mask).float() for name, mask in skeleton.masks(config).items()}
        modules = dict(self.net.named_modules())
        precisions = {
            name: precision
            for name, precision in precisions_in(config).items()
            if isinstance(getattr(modules.get(name), "weight", None), nn.Parameter)
        }
        dropped = frozenset(skeleton.modules[name] for name in skeleton.graph.dropped(config) if name in skeleton.modules)
        return SubNet(masks, dropped, precisions, skeleton.size)

    def score(self, config: Config) -> float:
        """What `evaluate` says of the sub-net with the shared weights. Raises OptionError where it fails."""
        sub = self.sub_net(config)
        select(self.net, config)
        buffers = recalibrated(self.net, sub, self.batches) if self.batches and has_batch_norm(self.net) else None
        evaluate = self.job.evaluate
        assert evaluate is not None
        return score_of(evaluate, self._runner(sub, buffers))

    def _runner(self, sub: SubNet, buffers: Mapping[str, Any] | None) -> Run:
        names = [spec.name for spec in self.job.model.inputs]
        given = [spec.name for spec in self.job.model.outputs]

        def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            missing = [name for name in names if name not in inputs]
            if missing:
                raise InputError(f"evaluate= gave run() no input {missing[0]!r}", f"the inputs are {', '.join(names)}")
            tensors = [torch.as_tensor(np.asarray(inputs[name])) for name in names]
            with torch.no_grad():
                outputs = computed(self.net, sub, tensors, buffers)
            flat = torch.utils._pytree.tree_leaves(outputs)
            return {name: each.numpy() for name, each in zip(given, flat, strict=True)}

        return run

    def model(self, config: Config) -> ImportedModel:
        """The sub-net as a graph, with its layers in their precisions, as far as costs need it."""
        skeleton = self.skeleton(config)
        model = self.whole(skeleton.graph.realized(config), skeleton)
        if self.precisions.scheme.integer_only or precisions_in(config):
            model = self.precisions.applied(canonical(model, self.job.target), config)
        return model

    def whole(self, model: ImportedModel, skeleton: Skeleton) -> ImportedModel:
        """A graph of a skeleton as it takes the caller's inputs."""
        if skeleton.size is None:
            return model
        for spec in self.job.model.inputs:
            if len(spec.shape) == 4:
                model = with_resolution(model, spec.name, [int(each) for each in spec.shape])
        return model


def _centre(shape: tuple[int, ...], size: int) -> Array:
    """True in the middle of filters."""
    mask = np.zeros(shape, np.bool_)
    less = (shape[-1] - size) // 2
    mask[(slice(None), slice(None), *[slice(less, less + size)] * (len(shape) - 2))] = True
    return mask


def _scaled_example(imports: ImportOptions, share: float) -> tuple[tuple[int, int], ImportOptions]:
    """(height and width, the options of importing at that size). Raises OptionError where there is no image."""
    given: Any = imports.example_inputs
    values = list(given.values()) if isinstance(given, Mapping) else list(given or ())
    images = [each for each in values if getattr(each, "ndim", 0) == 4]
    if not images:
        raise OptionError("space= has a resolution, and no input is an image (N, C, H, W)", "leave resolution out")
    size = tuple(max(1, round(int(each) * share)) for each in images[0].shape[2:])

    def smaller(each: Any) -> Any:
        return torch.zeros(*each.shape[:2], *size, dtype=each.dtype) if getattr(each, "ndim", 0) == 4 else each

    inputs: Any = (
        {name: smaller(each) for name, each in given.items()}
        if isinstance(given, Mapping)
        else tuple(smaller(each) for each in values)
    )
    return (size[0], size[1]), replace(imports, example_inputs=inputs)


def _definitions(model: ImportedModel) -> dict[Var, Any]:
    return {binding.var: binding.value for block in model.mod["main"].body.blocks for binding in block.bindings}


def _outputs_of_modules(net: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, Array]:
    outputs: dict[str, Array] = {}
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def remember(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[name] = output.detach().numpy().copy()

        return remember

    for name, module in net.named_modules():
        handles.append(module.register_forward_hook(watch(name)))
    try:
        with torch.no_grad():
            net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _like(wanted: Array, outputs: Mapping[str, Array]) -> str | None:
    """The outermost module that gives this tensor, whatever its shape is seen as; None when none does."""
    scale = float(np.abs(wanted).max()) or 1.0
    for name, output in outputs.items():
        if name and output.size == wanted.size:
            if np.abs(output.reshape(wanted.shape) - wanted).max() <= _TOLERANCE * scale:
                return name
    return None


def copied(net: nn.Module) -> nn.Module:
    """A copy to train."""
    return copy.deepcopy(net)
