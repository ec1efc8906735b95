"""A torch module being pruned: the positions of its parameters in the graph, and masks that hold in training.

The graph from `torch.export` has lost the parameters' names. So a copy of the module, with a different number in every
element of every weight, is imported as well: any such number in the graph, even if transposed or sliced, identifies
the parameter it came from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm.ir import GenericConst, IRModule

from compiler.compression.job import Job
from compiler.compression.model import CompressedModel, canonical, weight_names
from compiler.compression.pruning.dependencies import Dependencies, find_dependencies
from compiler.compression.pruning.plan import Plan, cell_changes, mask_changes, require_change, unit_masks, weights_of
from compiler.compression.pruning.settings import Finetune, Loss, PruningOptions, note_on_zeros
from compiler.compression.pruning.shrink import shrink
from compiler.compression.report import LayerChange
from compiler.errors import InternalError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.matching import Array, array_of

if TYPE_CHECKING:
    import torch


_FIRST = 0x30000000  # the bits of 4.7e-10; 2^28 numbers follow up to 2
_MAX_NUMBERS = 1 << 28


@dataclass
class Trained:
    """A torch module, its graph, and the parameter element that each element of a weight comes from.

    Attributes:
        net: the caller's own module, in evaluation mode.
        imports: its import options.
        found: dependencies of the graph.
        positions: for each weight, the index of each element in the concatenation of all parameters; for zeros that pad
            packed weights, like those of recurrent layers, the index after the last.
        masks: mask of the kept elements of each parameter, by its name.
    """

    net: Any
    imports: ImportOptions
    found: Dependencies
    positions: dict[GenericConst, Array]
    masks: dict[str, Array] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def parameters(self) -> list[tuple[str, Any]]:
        return [(name, each) for name, each in self.net.named_parameters() if each.ndim >= 2]

    def gathered(self, values: Mapping[str, Array]) -> dict[GenericConst, Array]:
        """Arrays by parameter, converted to arrays by weight of the graph."""
        flat = np.concatenate([*(np.asarray(values[name]).ravel() for name, _ in self.parameters()), np.zeros(1)])
        return {constant: flat[positions] for constant, positions in self.positions.items()}

    def weights(self) -> dict[str, Array]:
        return {name: each.detach().cpu().numpy() for name, each in self.parameters()}

    def parameter_masks(self, kept: Mapping[GenericConst, Array]) -> dict[str, Array]:
        """Mask of each parameter, by name, without parameters that keep all elements."""
        total = np.ones(sum(each.numel() for _, each in self.parameters()) + 1, np.bool_)
        for constant, stays in kept.items():
            np.logical_and.at(
                total, self.positions[constant].ravel(), np.broadcast_to(stays, self.positions[constant].shape).ravel()
            )
        start, masks = 0, {}
        for name, parameter in self.parameters():
            part = total[start : start + parameter.numel()].reshape(tuple(parameter.shape))
            start += parameter.numel()
            if not part.all():
                masks[name] = part
        return masks

    def mask(self, kept: Mapping[GenericConst, Array]) -> None:
        """Set the weights where `kept` is False to zero, also during training from now on."""
        self.mask_parameters(self.parameter_masks(kept))

    def mask_parameters(self, masks: Mapping[str, Array]) -> None:
        """Like `mask`, by the names of parameters."""
        for name, mask in masks.items():
            self.masks[name] = mask & self.masks.get(name, np.True_)
        self._hold()

    def _hold(self) -> None:
        import torch

        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.apply()
        for name, parameter in self.parameters():
            if name in self.masks and parameter.requires_grad:
                mask = torch.from_numpy(self.masks[name]).to(parameter.device)
                self._handles.append(parameter.register_hook(lambda gradient, mask=mask: gradient * mask))

    def apply(self) -> None:
        """Set masked weights to zero."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters():
                if name in self.masks:
                    parameter.mul_(torch.from_numpy(self.masks[name]).to(parameter.device))

    def train(self, finetune: Finetune | None, rewind: Mapping[str, Any] | None = None) -> None:
        """Let the caller train; masked weights stay zero."""
        if rewind is not None:
            self.net.load_state_dict(dict(rewind))
            self.apply()
        if finetune is not None:
            finetune(self.net)
            self.apply()
        self.net.eval()

    def imported(self) -> ImportedModel:
        """The graph with the module's current weights."""
        return self.imports.load(self.net)

    def gradients(self, loss: Loss, squared: bool) -> dict[str, Array]:
        """Gradients of the caller's loss for each parameter; squared for Fisher's diagonal, summed over the caller's
        losses."""
        import torch

        totals = {name: np.zeros(tuple(each.shape)) for name, each in self.parameters()}
        losses = loss(self.net)
        for each in [losses] if isinstance(losses, torch.Tensor) else losses:
            self.net.zero_grad()
            each.backward()
            for name, parameter in self.parameters():
                if parameter.grad is not None:
                    gradient = parameter.grad.detach().cpu().numpy().astype(np.float64)
                    totals[name] += gradient**2 if squared else gradient
        self.net.zero_grad()
        return totals


def trained(net: torch.nn.Module, imports: ImportOptions) -> Trained:
    """Import a tagged copy of `net`. Raises as `import_model`, and OptionError for weights that are not float32."""
    model = imports.load(_tagged(net))
    dependencies = find_dependencies(model.mod, weight_names(model))
    total = sum(each.numel() for each in net.parameters() if each.ndim >= 2)
    positions = {}
    for constant in dependencies.constants:
        array = array_of(constant)
        if array.ndim >= 2 and array.dtype == np.float32:
            index = np.ascontiguousarray(array).view(np.int32).astype(np.int64) - _FIRST
            tagged = (index >= 0) & (index < total)
            if tagged.any() and bool((tagged | (array == 0)).all()):
                positions[constant] = np.where(tagged, index, total)
    return Trained(net, imports, dependencies, positions)


def _tagged(net: torch.nn.Module) -> torch.nn.Module:
    """A copy with unique numbers as weights, and identity batch norms, so that folding changes no number."""
    import torch

    result = copy.deepcopy(net).eval()
    start = 0
    with torch.no_grad():
        for module in result.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                module.running_mean.zero_()
                module.running_var.fill_(1)
                module.eps = 0.0
                if module.affine:
                    module.weight.fill_(1)
        for name, parameter in result.named_parameters():
            if parameter.ndim < 2:
                continue
            if parameter.dtype != torch.float32:
                raise OptionError(f"the parameter {name!r} is {parameter.dtype}", "prune the module in float32")
            if start + parameter.numel() > _MAX_NUMBERS:
                raise OptionError(
                    f"the module has more than {_MAX_NUMBERS} weights", "prune it as ONNX, without fine-tuning"
                )
            numbers = torch.arange(_FIRST + start, _FIRST + start + parameter.numel(), dtype=torch.int32)
            parameter.copy_(numbers.view(torch.float32).reshape(parameter.shape))
            start += parameter.numel()
    return result


def translated(removed: Array, source: Dependencies, mod: IRModule) -> tuple[Dependencies, Array]:
    """(dependencies of `mod`, its units to remove): the same graph as that of `source` with other numbers in it."""
    found = find_dependencies(mod)
    return found, carried_over(removed, source, found)


def carried_over(removed: Array, source: Dependencies, found: Dependencies) -> Array:
    """Units of `found` that correspond to those of `source`: dependencies of the same graph with other numbers in
    it."""
    result = np.zeros(int(found.units.max(initial=0)) + 1, np.bool_)
    if len(found.producers) != len(source.producers):
        raise InternalError("the module's graph changed while it was trained")
    for ours, theirs in zip(found.producers, source.producers, strict=True):
        units, tagged = found.unit_axis(ours.labels), source.unit_axis(theirs.labels)
        if units is not None and tagged is not None:
            result[units[removed[tagged]]] = True
    result[0] = False
    return result


__all__: Sequence[str] = ("Finetune", "Loss", "Trained", "carried_over", "trained", "translated")


# Pruning a torch module while it is trained: first masks, finally a smaller graph.

_ADVICE = "prune less, fine-tune longer, or in more steps="


class Pruned(Trained):
    """A module in training, with units of its graph that will be removed at the end."""

    removed: Array | None = None

    def compressed(self) -> ImportedModel:
        """The graph with the module's current weights, without the removed units."""
        model = self.imported()
        if self.removed is None:
            return model
        found, removed = translated(self.removed, self.found, model.mod)
        return replace(model, mod=shrink(found, removed))


def prune_trained(
    job: Job, source: Any, options: PruningOptions, amount: float, imports: ImportOptions
) -> CompressedModel:
    """Prune step by step, with training after each step."""
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
    measure = job.measure(candidate)
    job.require(measure, _ADVICE)
    notes = () if plan.kind is None else (note_on_zeros(measure, job.target),)
    return job.result(plan.title(amount), candidate, measure, plan.settings(amount), layers, notes, work)


def _step(job: Job, plan: Plan, work: Pruned, share: float, loss: Loss | None) -> list[LayerChange]:
    costs = _costs(plan, work, loss)
    if plan.kind is not None:
        weights = [weight for weight in weights_of(work.found) if weight.constant in costs]
        chosen = plan.masks(weights, costs, share)
        work.mask(chosen)
        return mask_changes(weights, chosen)
    cells = plan.cells(work.found, work.positions)
    gone = () if work.removed is None else np.flatnonzero(work.removed).tolist()
    scores = work.found.totals(costs)
    work.removed = plan.units(cells, scores, share, job.target.machine.lanes("float32"), gone)
    work.mask(unit_masks(work.found, work.removed, work.positions))
    return cell_changes(cells, work.removed)


def _costs(plan: Plan, work: Pruned, loss: Loss | None) -> dict[GenericConst, Array]:
    """Cost of removing each element of each weight of the graph."""
    weights = {name: values.astype(np.float64) for name, values in work.weights().items()}
    if plan.criterion == "magnitude" or loss is None:
        return work.gathered({name: values**2 for name, values in weights.items()})
    gradients = work.gradients(loss, squared=plan.criterion == "second-order")
    if plan.criterion == "gradient":
        return work.gathered({name: np.abs(values * gradients[name]) for name, values in weights.items()})
    return work.gathered({name: values**2 * gradients[name] / 2 for name, values in weights.items()})
