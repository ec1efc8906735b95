"""The losses that a student is trained with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from compiler.compression.distillation_settings import DistillationOptions
from compiler.errors import InputError, OptionError


@dataclass
class Objective:
    """Computes the loss of a batch.

    Attributes:
        seen: outputs of the hooked submodules by (side, index) of the last batch.
        adapters: linear maps from the student's features to the teacher's, where their widths differ.
    """

    net: Any
    teacher: Callable[[Any], Any]
    options: DistillationOptions
    seen: dict[tuple[str, int], Any] = field(default_factory=dict)
    adapters: dict[int, Any] = field(default_factory=dict)

    def parameters(self) -> list[Any]:
        """Of the adapters."""
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]

    def loss(self, inputs: Any, labels: Any) -> Any:
        """A scalar tensor."""
        import torch

        given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        outputs = self.net(*given)
        with torch.no_grad():
            wanted = torch.as_tensor(self.teacher(*given))
        if wanted.shape != outputs.shape:
            raise OptionError(f"the teacher gives {tuple(wanted.shape)}, the student {tuple(outputs.shape)}")
        total = response(outputs, wanted, self.options.temperature)
        for index in range(len(self.options.features)):
            total = total + self._feature(index)
        if self.options.method == "relation":
            total = total + relation(outputs, wanted)
        if labels is None:
            return total
        task, weight = self.options.task or torch.nn.functional.cross_entropy, self.options.weight
        return weight * total + (1 - weight) * task(outputs, labels)

    def _feature(self, index: int) -> Any:
        import torch

        own, wanted = (self.seen[side, index] for side in ("student", "teacher"))
        if own.ndim != wanted.ndim or (own.shape[2:] != wanted.shape[2:] and own.ndim > 3):
            raise OptionError(f"features[{index}]: {tuple(own.shape)} cannot be compared with {tuple(wanted.shape)}")
        axis = 1 if own.ndim > 3 else own.ndim - 1  # (batch, channels, height, width) or (..., width)
        own, wanted = own.movedim(axis, -1), wanted.movedim(axis, -1)
        if own.shape[-1] != wanted.shape[-1]:
            if index not in self.adapters:
                self.adapters[index] = torch.nn.Linear(own.shape[-1], wanted.shape[-1]).to(own.device)
            own = self.adapters[index](own)
        return torch.nn.functional.mse_loss(own, wanted.detach())


def response(outputs: Any, wanted: Any, temperature: float) -> Any:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over all but the last axis (classes)."""
    import torch

    count = outputs.shape[-1]
    own = torch.log_softmax(outputs.reshape(-1, count) / temperature, -1)
    target = torch.log_softmax(wanted.reshape(-1, count) / temperature, -1)
    return temperature**2 * torch.nn.functional.kl_div(own, target, reduction="batchmean", log_target=True)


def relation(own: Any, wanted: Any) -> Any:
    """Smooth L1 between the distances, scaled by their mean, and twice that between the angles (Park et al. 2019).

    Args:
        own, wanted: (batch, ...), of one batch size; widths may differ.
    """
    import torch

    def distances(points: Any) -> Any:
        first, second = torch.triu_indices(len(points), len(points), 1)
        found = (points[first] - points[second]).norm(dim=1)
        return found / found.mean().clamp_min(1e-12)

    def angles(points: Any) -> Any:
        directions = torch.nn.functional.normalize(points[None] - points[:, None], dim=-1)
        return directions @ directions.transpose(1, 2)

    if len(own) < 2:
        raise InputError("a batch of one sample has no distances to compare", "give larger batches")
    own, wanted = own.flatten(1), wanted.flatten(1)
    loss = torch.nn.functional.smooth_l1_loss
    return loss(distances(own), distances(wanted)) + 2 * loss(angles(own), angles(wanted))


@contextmanager
def objective(net: Any, options: DistillationOptions) -> Iterator[Objective]:
    """The objective; hooks are gone when it ends. Raises OptionError when `features` names what is not there."""
    import torch

    teacher = copy.deepcopy(net) if options.method == "self" else options.teacher
    if isinstance(teacher, torch.nn.Module):
        teacher.eval()
    goal = Objective(net, teacher, options)
    handles = []
    try:
        for index, names in enumerate(options.features):
            for side, whole, name in zip(("student", "teacher"), (net, teacher), names, strict=True):
                handles.append(_hook(goal, side, index, whole, name))
        yield goal
    finally:
        for handle in handles:
            handle.remove()


def _hook(goal: Objective, side: str, index: int, whole: object, name: str) -> Any:
    parts = dict(whole.named_modules()) if hasattr(whole, "named_modules") else {}
    if name not in parts:
        raise OptionError(f"features= names {name!r}, which the {side} lacks", f"it has {', '.join(parts) or 'none'}")

    def remember(_module: object, _inputs: object, output: object) -> None:
        goal.seen[side, index] = output

    return parts[name].register_forward_hook(remember)
