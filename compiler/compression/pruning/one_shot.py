"""Pruning a graph without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm.ir import GenericConst

from compiler.compression.job import Job
from compiler.compression.layer_names import weight_names
from compiler.compression.model import CompressedModel
from compiler.compression.pruning.dependencies import find_dependencies
from compiler.compression.pruning.hessian import compensated, diagonal, factor, hessians, saliency
from compiler.compression.pruning.layers import (
    find_residual_layers,
    influences,
    mean_square,
    size_of,
    without_layers,
)
from compiler.compression.pruning.plan import Plan, cell_changes, mask_changes, require_change
from compiler.compression.pruning.shrink import shrink
from compiler.compression.pruning.weights import weights_of, with_constants
from compiler.compression.pruning.zeros import note_on_zeros
from compiler.compression.report import LayerChange
from compiler.errors import OptionError
from compiler.passes.rewriting.matching import Array, array_of


class OneShot:
    """Prunes the same model by different amounts."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self.job, self.plan = job, plan
        self.found = find_dependencies(job.model.mod, weight_names(job.model))
        self.weights = weights_of(self.found)
        self._arrays = {weight.constant: array_of(weight.constant) for weight in self.weights}
        self._hessians: dict[GenericConst, Array] = {}
        if plan.criterion == "second-order":
            job.report("look at the layers' inputs")
            self._hessians = hessians(job, list(self._arrays))

    def pruned(self, amount: float) -> CompressedModel:
        """The model with that share pruned, measured."""
        self.job.report(f"prune {amount:.0%}")
        if self.plan.pattern == "layers":
            return self._shallower(amount)
        return self._smaller(amount) if self.plan.kind is None else self._thinner(amount)

    def _shallower(self, amount: float) -> CompressedModel:
        layers = find_residual_layers(self.job.model)
        count = round(amount * len(layers))
        if not count:
            raise OptionError(
                f"amount={amount} of the model's {len(layers)} layers is none",
                "give a larger amount; a layer is what a residual sum adds to its input, of its shape",
            )
        influence = self.plan.criterion == "influence"
        costs = influences(self.job, layers) if influence else [mean_square(layer) for layer in layers]
        order = np.argsort(costs, kind="stable")[:count]
        gone = set(order.tolist())
        mod = without_layers(self.job.model.mod, [layers[index] for index in sorted(gone)])
        candidate = replace(self.job.model, mod=mod)
        after = self.job.measure(candidate)
        changes = [
            LayerChange(each.name, "removed", size_of(each), 0)
            if index in gone
            else LayerChange(each.name, "", size_of(each), size_of(each))
            for index, each in enumerate(layers)
        ]
        return self.job.result(self.plan.title(amount), candidate, after, self.plan.settings(amount), changes)

    def _smaller(self, amount: float) -> CompressedModel:
        cells = self.plan.cells(self.found)
        scores = self.found.totals({weight.constant: self._cost(weight.constant) for weight in self.weights})
        removed = self.plan.units(cells, scores, amount, self.job.target.machine.lanes("float32"))
        changes = cell_changes(cells, removed)
        require_change(changes, self.plan, amount)
        candidate = replace(self.job.model, mod=shrink(self.found, removed))
        after = self.job.measure(candidate)
        return self.job.result(self.plan.title(amount), candidate, after, self.plan.settings(amount), changes)

    def _cost(self, constant: GenericConst) -> Array:
        """Of each element: its square, by second order times what it multiplies."""
        squares = self._arrays[constant].astype(np.float64) ** 2
        weight = next(each for each in self.weights if each.constant == constant)
        scale = diagonal(self._hessians, constant)
        return squares if scale is None else weight.restored(weight.matrix(squares) * scale)

    def _thinner(self, amount: float) -> CompressedModel:
        kind = self.plan.kind
        assert kind is not None
        amount = kind.amount or amount
        factors = {constant: factor(hessian) for constant, hessian in self._hessians.items()}
        costs = {}
        for weight in self.weights:
            values = self._arrays[weight.constant].astype(np.float64)
            upper = factors.get(weight.constant)
            squares = values**2 if upper is None else weight.restored(saliency(weight.matrix(values), upper))
            costs[weight.constant] = squares
        chosen = self.plan.masks(self.weights, costs, amount)
        changes = mask_changes(self.weights, chosen)
        require_change(changes, self.plan, amount)
        new = {}
        for weight in self.weights:
            values, mask = self._arrays[weight.constant], chosen[weight.constant]
            upper = factors.get(weight.constant)
            new[weight.constant] = np.where(mask, values, np.float32(0))
            if upper is not None:
                new[weight.constant] = weight.restored(compensated(weight.matrix(values), weight.matrix(mask), upper))
        candidate = replace(self.job.model, mod=with_constants(self.job.model.mod, new))
        after = self.job.measure(candidate)
        notes = (note_on_zeros(after, self.job.target),)
        return self.job.result(self.plan.title(amount), candidate, after, self.plan.settings(amount), changes, notes)
