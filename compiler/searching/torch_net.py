"""A torch net in a search: its sub-nets share its weights, are scored by running torch, and become graphs.

Also finds the torch module whose result a residual sum adds: with zeros as its output, the layer is left out.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, repeat
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tvm import relax

from compiler.compression.job import Job
from compiler.compression.model import canonical
from compiler.compression.pruning.plan import unit_masks
from compiler.compression.pruning.training import Trained, carried_over, trained
from compiler.errors import InputError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.graph import Var, operator_name
from compiler.passes.rewriting.matching import Array, shape_of
from compiler.passes.rewriting.node_tracker import NodeTracker
from compiler.searching.choice import choices_of, materialized, select
from compiler.searching.eager import SubNet, computed, has_batch_norm, recalibrated
from compiler.searching.graph import SearchGraph, with_resolution
from compiler.searching.knobs import Config, Key, Knob, Option, key_of
from compiler.searching.layer_table import channels_at_once
from compiler.searching.precision import Precisions, precisions_in
from compiler.searching.settings import Space
from compiler.support.accuracy import Run
from compiler.support.accuracy import score as score_of

RECALIBRATED = 8  # batches for batch norm statistics
_REMEMBERED = 4  # sub-nets whose masks are cached
_SHAPES = 64  # trained selections of choices and resolutions, if each needs its own graph
_SKELETONS = 64  # cached graphs
_OF_GRAPHS = ("channels", "expansion", "heads", "layer", "kernel")


@dataclass
class Skeleton:
    """The graph of one selection of choices at one resolution.

    Attributes:
        tagged: graph of a copy with a different number in every element of every weight, which locates parameters.
        graph: graph of the net itself.
        modules: names of the torch modules whose outputs residual sums add, by the layer's name.
        size: (height, width) of its input images; None if they are not scaled.
    """

    tagged: Trained
    graph: SearchGraph
    modules: dict[str, str]
    size: tuple[int, int] | None

    def removed_in_tagged(self, config: Config) -> Array:
        """Units of `tagged.found` that are removed."""
        return carried_over(self.graph.removed(config), self.graph.found, self.tagged.found)

    def masks(self, config: Config) -> dict[str, Array]:
        """Mask of each parameter, by name: of channels, heads and filters."""
        kept = unit_masks(self.tagged.found, self.removed_in_tagged(config), self.tagged.positions)
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
        job: job of the original net.
        imports: `example_inputs` at full resolution.
        batches: batches of inputs only, for batch norm statistics of sub-nets.
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
        self.batches = [list(each) for each in batches][:RECALIBRATED]
        # Units are removed in one order, by the weights before any training: with separate orders, the forms of a block
        # and a resumed run would keep other units than those that were trained together.
        self._untrained = copied(net).eval()
        self._orders: dict[tuple[str, int], Array] = {}
        self._skeletons: dict[tuple[Any, ...], Skeleton] = {}
        self._subs: dict[Key, SubNet] = {}
        self.knobs: list[Knob] = self._found_knobs()

    def _found_knobs(self) -> list[Knob]:
        blocks = choices_of(self.net)
        knobs = [Knob(f"choice {name}", "choice", tuple(range(len(block)))) for name, block in blocks.items()]
        if self.space.resolution:
            knobs.append(Knob("resolution", "resolution", (*sorted({*self.space.resolution} - {1.0}), 1.0)))
        lanes = channels_at_once(self.precisions.target)
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
        """Skeleton for the config's choices and resolution; the latest ones are cached."""
        share = config.get("resolution", 1.0)
        key = (share, *(config.get(f"choice {name}", len(block) - 1) for name, block in choices_of(self.net).items()))
        skeleton = self._skeletons.pop(key, None) or self._made(config, float(share))
        self._skeletons[key] = skeleton
        while len(self._skeletons) > _SKELETONS:
            self._skeletons.pop(next(iter(self._skeletons)))
        return skeleton

    def _made(self, config: Config, share: float) -> Skeleton:
        net = materialized(self._untrained, config).eval()
        size, imports = None, self.imports
        if share != 1.0:
            size, imports = _scaled_example(self.imports, share)
        model = imports.load(net)
        tagged = trained(net, imports)
        usable = {index for index, each in enumerate(tagged.found.producers) if each.constant in tagged.positions}
        graph = SearchGraph.of(model, usable)
        graph.reorder(self._orders)
        modules = modules_of_layers(net, graph, _example(imports)) if self.space.layers else {}
        return Skeleton(tagged, graph, modules, size)

    @property
    def _needs_graphs(self) -> bool:
        """True if torch needs graphs to determine the effect of a config."""
        return any(knob.kind in _OF_GRAPHS for knob in self.knobs)

    def shapes(self, random: Random) -> Iterator[dict[str, Option]]:
        """An endless sequence of choices and resolutions to train: each form of each choice equally often.

        All combinations may occur; if each needs its own graph, only a limited number of combinations is repeated.
        """
        outer = [knob for knob in self.knobs if knob.kind in ("choice", "resolution")]
        if not outer:
            yield from repeat({})
            return
        most = max(len(knob.options) for knob in outer)
        configs: list[dict[str, Option]] = []
        while not self._needs_graphs or len(configs) < _SHAPES:
            columns = {knob.name: _balanced(knob.options, most, random) for knob in outer}
            drawn = [{name: column[index] for name, column in columns.items()} for index in range(most)]
            configs += drawn if self._needs_graphs else []
            yield from drawn
        yield from cycle(configs[:_SHAPES])

    def sub_net(self, config: Config) -> SubNet:
        """The sub-net that computes a config in torch."""
        key = key_of(config)
        if key not in self._subs:
            while len(self._subs) >= _REMEMBERED:
                self._subs.pop(next(iter(self._subs)))
            self._subs[key] = self._made_sub_net(config)
        return self._subs[key]

    def _is_selected(self, module: str, config: Config) -> bool:
        """True unless a module is in a form that the config's choices leave out."""
        blocks = choices_of(self.net)
        return all(
            not module.startswith(f"{name}.")
            or module.startswith(f"{name}.{config.get(f'choice {name}', len(block) - 1)}.")
            or module == f"{name}.{config.get(f'choice {name}', len(block) - 1)}"
            for name, block in blocks.items()
        )

    def _made_sub_net(self, config: Config) -> SubNet:
        if not self._needs_graphs:
            size = _scaled_example(self.imports, float(config["resolution"]))[0] if _is_scaled(config) else None
            return SubNet({}, frozenset(), self._rounded(config), size)
        skeleton = self.skeleton(config)
        masks = {name: torch.from_numpy(mask).float() for name, mask in skeleton.masks(config).items()}
        dropped = frozenset(
            skeleton.modules[name] for name in skeleton.graph.dropped(config) if name in skeleton.modules
        )
        return SubNet(masks, dropped, self._rounded(config), skeleton.size)

    def _rounded(self, config: Config) -> dict[str, str]:
        """The precision of each torch module that is rounded."""
        modules = dict(self.net.named_modules())
        return {
            name: precision
            for name, precision in precisions_in(config).items()
            if isinstance(getattr(modules.get(name), "weight", None), nn.Parameter) and self._is_selected(name, config)
        }

    def score(self, config: Config) -> float:
        """Score of the sub-net with the shared weights by `evaluate`. Raises OptionError if it fails."""
        sub = self.sub_net(config)
        select(self.net, config)
        evaluate = self.job.evaluate
        assert evaluate is not None
        with on_threads(self.job.threads):
            buffers = recalibrated(self.net, sub, self.batches) if self.batches and has_batch_norm(self.net) else None
            return score_of(evaluate, self._runner(sub, buffers))

    def _runner(self, sub: SubNet, buffers: Mapping[str, Any] | None) -> Run:
        names = [spec.name for spec in self.job.model.inputs]
        output_names = [spec.name for spec in self.job.model.outputs]

        def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            missing = [name for name in names if name not in inputs]
            if missing:
                raise InputError(f"evaluate= gave run() no input {missing[0]!r}", f"the inputs are {', '.join(names)}")
            tensors = [torch.as_tensor(np.asarray(inputs[name])) for name in names]
            with torch.no_grad():
                outputs = computed(self.net, sub, tensors, buffers)
            flat = torch.utils._pytree.tree_leaves(outputs)
            return {name: each.numpy() for name, each in zip(output_names, flat, strict=True)}

        return run

    def model(self, config: Config) -> ImportedModel:
        """The sub-net as a graph, with its layers in their precisions, in the detail that costs need."""
        skeleton = self.skeleton(config)
        model = self.whole(skeleton.graph.realized(config), skeleton)
        if self.precisions.scheme.integer_only or precisions_in(config):
            model = self.precisions.applied(canonical(model, self.job.target), config)
        return model

    def whole(self, model: ImportedModel, skeleton: Skeleton) -> ImportedModel:
        """A skeleton's graph with the caller's inputs."""
        if skeleton.size is None:
            return model
        for spec in self.job.model.inputs:
            if len(spec.shape) == 4:
                model = with_resolution(model, spec.name, [int(each) for each in spec.shape])
        return model


def _balanced(options: Sequence[Option], count: int, random: Random) -> list[Option]:
    """`count` of the options in random order, each about equally often."""
    listed = [random.sample(options, len(options)) for _ in range(-(-count // len(options)))]
    return random.sample([each for part in listed for each in part][:count], count)


def _is_scaled(config: Config) -> bool:
    return config.get("resolution", 1.0) != 1.0


def _centre(shape: tuple[int, ...], size: int) -> Array:
    """True in the center of filters."""
    mask = np.zeros(shape, np.bool_)
    less = (shape[-1] - size) // 2
    mask[(slice(None), slice(None), *[slice(less, less + size)] * (len(shape) - 2))] = True
    return mask


def _scaled_example(imports: ImportOptions, share: float) -> tuple[tuple[int, int], ImportOptions]:
    """(height and width, the import options at that size). Raises OptionError if there is no image."""
    example: Any = imports.example_inputs
    values = list(example.values()) if isinstance(example, Mapping) else list(example or ())
    images = [value for value in values if getattr(value, "ndim", 0) == 4]
    if not images:
        raise OptionError("space= has a resolution, and no input is an image (N, C, H, W)", "leave resolution out")
    size = tuple(max(1, round(int(value) * share)) for value in images[0].shape[2:])

    def smaller(value: Any) -> Any:
        return torch.zeros(*value.shape[:2], *size, dtype=value.dtype) if getattr(value, "ndim", 0) == 4 else value

    inputs: Any = (
        {name: smaller(value) for name, value in example.items()}
        if isinstance(example, Mapping)
        else tuple(smaller(value) for value in values)
    )
    return (size[0], size[1]), replace(imports, example_inputs=inputs)


def _example(imports: ImportOptions) -> dict[str, Any] | list[Any]:
    given: Any = imports.example_inputs
    return dict(given) if isinstance(given, Mapping) else list(given or ())


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Run torch on a number of threads; None: its own setting."""
    previous = torch.get_num_threads()
    torch.set_num_threads(previous if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make torch draw the same random numbers each time, also for a loader's order; restores the caller's state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def copied(net: nn.Module) -> nn.Module:
    """A copy to train."""
    return copy.deepcopy(net)


# Operators of one tensor that map zeros to zeros.
_OF_ZEROS = {
    "relax.reshape",
    "relax.permute_dims",
    "relax.squeeze",
    "relax.expand_dims",
    "relax.astype",
    "relax.nn.relu",
    "relax.nn.gelu",
    "relax.nn.silu",
    "relax.tanh",
}


def modules_of_layers(net: nn.Module, graph: SearchGraph, example: Mapping[str, Any] | Sequence[Any]) -> dict[str, str]:
    """The module whose output the sum adds, by the layer's name; layers without one are omitted.

    Modules that are called twice, or that do not return a tensor with that many elements, do not count.
    """
    if not graph.residual_layers:
        return {}
    definitions = _definitions(graph.model)
    tracker = NodeTracker(graph.model.nodes)
    sizes, norm_after = _watched(net, example)
    by_layer = {}
    for name, layer in graph.residual_layers.items():
        left, right = definitions[layer.result].args
        added: Any = right if left.same_as(layer.passed) else left
        while added is not None:
            names = {node.name for node in tracker.of(str(added.name))}
            # Modules are in the order in which they end: the last one returns the sum's operand.
            modules = [each for each, size in sizes.items() if each in names and size == _size(added)]
            if modules:
                # Importing folds a batch norm into the convolution before it.
                by_layer[name] = norm_after.get(modules[-1], modules[-1])
                break
            added = _before(definitions.get(added))
    return by_layer


def _definitions(model: ImportedModel) -> dict[Var, Any]:
    return {binding.var: binding.value for block in model.mod["main"].body.blocks for binding in block.bindings}


def _before(value: Any) -> Any:
    """The variable read by an operator that maps zeros to zeros; None for any other value."""
    name = operator_name(value)
    if name in _OF_ZEROS and isinstance(value.args[0], relax.Var):
        return value.args[0]
    if name == "relax.multiply":  # by a constant, like the scale of a layer
        factors = [each for each in value.args if isinstance(each, relax.Var)]
        return factors[0] if len(factors) == 1 else None
    return None


def _size(variable: Var) -> int:
    size = 1
    for each in shape_of(variable) or ():
        size *= int(each)
    return size


def only_tensor(output: Any) -> torch.Tensor | None:
    """The tensor that a module returns, directly or in a tuple, like attention without its weights."""
    tensors = [each for each in torch.utils._pytree.tree_leaves(output) if isinstance(each, torch.Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def _watched(net: nn.Module, example: Mapping[str, Any] | Sequence[Any]) -> tuple[dict[str, int], dict[str, str]]:
    """(elements returned by each module that is called once and returns a tensor, in the order in which they end; by
    the name of a module, the batch norm that reads its result)"""
    sizes: dict[str, int] = {}
    calls: Counter[str] = Counter()
    givers: dict[int, tuple[str, torch.Tensor]] = {}  # with the tensors, so that their addresses are not reused
    norm_after: dict[str, str] = {}

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] += 1
            output = only_tensor(output)
            if output is None:
                return
            sizes[name] = output.numel()
            if isinstance(module, _BatchNorm) and id(inputs[0]) in givers:
                norm_after[givers[id(inputs[0])][0]] = name
            givers.setdefault(id(output), (name, output))

        return note

    handles = [module.register_forward_hook(watch(name)) for name, module in net.named_modules() if name]
    try:
        with torch.no_grad():
            net(**example) if isinstance(example, Mapping) else net(*example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: size for name, size in sizes.items() if calls[name] == 1}, norm_after
