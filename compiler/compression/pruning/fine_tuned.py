"""Pruning a torch module while it is trained: masks first, a smaller graph in the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm.ir import GenericConst

from compiler.compression.canonical import canonical
from compiler.compression.job import Job
from compiler.compression.model import CompressedModel
from compiler.compression.pruning.plan import Plan, cell_changes, mask_changes, require_change, unit_masks
from compiler.compression.pruning.settings import Loss, PruningOptions
from compiler.compression.pruning.shrink import shrink
from compiler.compression.pruning.training import Trained, trained, translated
from compiler.compression.pruning.weights import weights_of
from compiler.compression.pruning.zeros import note_on_zeros
from compiler.compression.report import LayerChange
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.matching import Array

_ADVICE = "prune less, fine-tune longer, or in more steps="


class Pruned(Trained):
    """A module in training with units of its graph to be removed when that is done."""

    removed: Array | None = None

    def compressed(self) -> ImportedModel:
        """The graph as the module now is, without the removed units."""
        model = self.imported()
        if self.removed is None:
            return model
        found, removed = translated(self.removed, self.found, model.mod)
        return replace(model, mod=shrink(found, removed))


def prune_trained(
    job: Job, source: Any, options: PruningOptions, amount: float, imports: ImportOptions
) -> CompressedModel:
    """Prune step by step, training after each."""
    plan = options.plan()
    job.report("follow the weights")
    work = Pruned(**vars(trained(source, imports)))
    amount = plan.kind.amount or amount if plan.kind is not None else amount
    layers: list[LayerChange] = []
    for step in range(1, plan.steps + 1):
        share = amount * (1 - (1 - step / plan.steps) ** 3)
        job.report(f"prune {share:.0%}")
        layers = _step(job, plan, work, share, options.loss)
        if step == plan.steps:
            require_change(layers, plan, share)
        job.report("fine-tune")
        work.train(options.finetune, options.rewind)
    job.report("measure")
    candidate = canonical(work.compressed(), job.target)
    after = job.measure(candidate)
    job.require(after, _ADVICE)
    notes = () if plan.kind is None else (note_on_zeros(after, job.target),)
    return job.result(plan.title(amount), candidate, after, plan.settings(amount), layers, notes, work)


def _step(job: Job, plan: Plan, work: Pruned, share: float, loss: Loss | None) -> list[LayerChange]:
    costs = _costs(plan, work, loss)
    if plan.kind is not None:
        weights = [weight for weight in weights_of(work.found) if weight.constant in costs]
        chosen = plan.masks(weights, costs, share)
        work.mask(chosen)
        return mask_changes(weights, chosen)
    cells = plan.cells(work.found, work.places)
    gone = () if work.removed is None else np.flatnonzero(work.removed).tolist()
    scores = work.found.totals(costs)
    work.removed = plan.units(cells, scores, share, job.target.machine.lanes("float32"), gone)
    work.mask(unit_masks(work.found, work.removed, work.places))
    return cell_changes(cells, work.removed)


def _costs(plan: Plan, work: Pruned, loss: Loss | None) -> dict[GenericConst, Array]:
    """Of each element of each weight of the graph."""
    weights = {name: values.astype(np.float64) for name, values in work.weights().items()}
    if plan.criterion == "magnitude" or loss is None:
        return work.gathered({name: values**2 for name, values in weights.items()})
    gradients = work.gradients(loss, squared=plan.criterion == "second-order")
    if plan.criterion == "gradient":
        return work.gathered({name: np.abs(values * gradients[name]) for name, values in weights.items()})
    return work.gathered({name: values**2 * gradients[name] / 2 for name, values in weights.items()})
