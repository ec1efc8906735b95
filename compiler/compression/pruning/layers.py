"""Whole-layer pruning: removes a residual branch and keeps its input.

    y = x + f(x) => y = x

where f has weights. A block of a residual network is one such layer, a transformer block two: attention and the
feed-forward network after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.job import Job
from compiler.compression.model import LayerNames
from compiler.compression.quantization.calibration import ModuleWithTaps
from compiler.compression.quantization.edit import edit_main, main_bindings
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.rewriting.graph import Call, Expr, Var, operands, operator_name, remove_unused
from compiler.passes.rewriting.matching import Array, array_of
from compiler.support.accuracy import cosine

from tvm_ffi import structural_equal  # isort: skip


@dataclass(frozen=True)
class ResidualLayer:
    """A layer that can be removed.

    Attributes:
        result: the variable of the sum.
        passed: the variable that replaces it when the layer is removed.
        weights: the constants of at least two dimensions that only this layer's result depends on.
    """

    name: str
    result: Var
    passed: Var
    weights: tuple[GenericConst, ...]


def find_residual_layers(model: ImportedModel) -> list[ResidualLayer]:
    """The layers of `main`, in order: sums with one operand computed from the other through weights."""
    mod, names = model.mod, LayerNames(model.nodes)
    bindings = main_bindings(mod)
    values = dict(bindings)
    readers: dict[Var, int] = {}
    for _, value in bindings:
        for variable in operands(value):
            readers[variable] = readers.get(variable, 0) + 1
    for variable in operands(mod["main"].body.body):
        readers[variable] = readers.get(variable, 0) + 1
    layers: list[ResidualLayer] = []
    for variable, value in bindings:
        if operator_name(value) != "relax.add":
            continue
        for passed, added in (value.args, reversed(value.args)):
            both = isinstance(passed, relax.Var) and isinstance(added, relax.Var)
            if not both or not all(structural_equal(each.ty, variable.ty) for each in (passed, added)):
                continue
            inner = _between(added, passed, values, readers)
            weights = _weights(values[each] for each in inner) if inner is not None else ()
            if weights:
                layers.append(ResidualLayer(names.name(variable, f"layer_{len(layers)}"), variable, passed, weights))
                break
    return layers


def _between(added: Var, passed: Expr, values: dict[Var, Expr], readers: dict[Var, int]) -> list[Var] | None:
    """The variables that only `added` needs; None if none of them is computed from `passed`."""
    pending_uses = {added: readers.get(added, 0) - 1}
    order, reached, waiting = [], False, [added] if pending_uses[added] == 0 else []
    while waiting:
        variable = waiting.pop()
        order.append(variable)
        for operand in operands(values[variable]):
            if operand.same_as(passed):
                reached = True
                continue
            if operand not in values:
                continue
            pending_uses[operand] = pending_uses.get(operand, readers[operand]) - 1
            if pending_uses[operand] == 0:
                waiting.append(operand)
    return order if reached else None


def _weights(values: Iterable[Expr]) -> tuple[GenericConst, ...]:
    constants: dict[GenericConst, None] = {}
    for value in values:
        if isinstance(value, relax.Call):
            for argument in value.args:
                if isinstance(argument, GenericConst) and array_of(argument).ndim > 1 and array_of(argument).size > 1:
                    constants[argument] = None
    return tuple(constants)


def without_layers(mod: IRModule, layers: Iterable[ResidualLayer]) -> IRModule:
    """The module with the sums of these layers replaced by their unchanged input."""
    gone = {layer.result: layer.passed for layer in layers}

    def edit(variable: Var, call: Call, emit: object) -> Expr | None:
        return gone.get(variable)

    return remove_unused(edit_main(mod, edit))


def size_of(layer: ResidualLayer) -> int:
    """Number of elements of the layer's weights."""
    return int(sum(array_of(weight).size for weight in layer.weights))


def mean_square(layer: ResidualLayer) -> float:
    """Mean square of the layer's weights."""
    return float(sum(np.square(array_of(each), dtype=np.float64).sum() for each in layer.weights)) / size_of(layer)


def influences(job: Job, layers: Sequence[ResidualLayer]) -> list[float]:
    """Influence of each layer on its input: 1 minus the mean cosine between input and output over the calibration
    ("block influence", Men et al. 2024, ShortGPT)."""
    taps = dict.fromkeys(each for layer in layers for each in (layer.passed, layer.result))
    tapped = ModuleWithTaps(job.model, job.model.mod, list(taps), job.compile)
    by_layer: list[list[float]] = [[] for _ in layers]
    for sample in job.samples:
        tensors: dict[Var, Array] = tapped.run(sample)[1]
        for layer, cosines in zip(layers, by_layer, strict=True):
            cosines.append(cosine(tensors[layer.passed], tensors[layer.result]))
    return [1 - float(np.mean(each)) for each in by_layer]
