"""Torch module whose result a residual sum adds: made to give zeros, it leaves the layer out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tvm import relax

from compiler.frontends.imported_model import ImportedModel
from compiler.passes.rewriting.graph import Var, operator_name
from compiler.passes.rewriting.matching import shape_of
from compiler.passes.rewriting.node_tracker import NodeTracker
from compiler.searching.graph import SearchGraph

# Operators of one tensor that make zeros of zeros.
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
    """By the layer's name the module whose output the sum adds; layers without one are left out.

    A module that is called twice, or that gives no tensor of as many elements, is none.
    """
    if not graph.residual_layers:
        return {}
    definitions = _definitions(graph.model)
    tracker = NodeTracker(graph.model.nodes)
    sizes, norm_after = _watched(net, example)
    found = {}
    for name, layer in graph.residual_layers.items():
        left, right = definitions[layer.result].args
        added: Any = right if left.same_as(layer.passed) else left
        while added is not None:
            names = {node.name for node in tracker.of(str(added.name))}
            # Modules come in the order in which they end: the last one gives the sum's operand.
            modules = [each for each, size in sizes.items() if each in names and size == _size(added)]
            if modules:
                # Importing folds a batch norm into the convolution before it.
                found[name] = norm_after.get(modules[-1], modules[-1])
                break
            added = _before(definitions.get(added))
    return found


def _definitions(model: ImportedModel) -> dict[Var, Any]:
    return {binding.var: binding.value for block in model.mod["main"].body.blocks for binding in block.bindings}


def _before(value: Any) -> Any:
    """The variable that an operator of zeros reads; None for any other value."""
    name = operator_name(value)
    if name in _OF_ZEROS and isinstance(value.args[0], relax.Var):
        return value.args[0]
    if name == "relax.multiply":  # by a constant, as the scale of a layer
        factors = [each for each in value.args if isinstance(each, relax.Var)]
        return factors[0] if len(factors) == 1 else None
    return None


def _size(variable: Var) -> int:
    size = 1
    for each in shape_of(variable) or ():
        size *= int(each)
    return size


def only_tensor(output: Any) -> torch.Tensor | None:
    """The tensor that a module gives, alone or in a tuple, as attention without its weights does."""
    tensors = [each for each in torch.utils._pytree.tree_leaves(output) if isinstance(each, torch.Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def _watched(net: nn.Module, example: Mapping[str, Any] | Sequence[Any]) -> tuple[dict[str, int], dict[str, str]]:
    """(elements that each module gives, of those that are called once and give a tensor, in the order in which they
    end; by the name of a module the batch norm that reads its result)"""
    sizes: dict[str, int] = {}
    calls: Counter[str] = Counter()
    givers: dict[int, tuple[str, torch.Tensor]] = {}  # with the tensors, so that no other takes their place in memory
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
