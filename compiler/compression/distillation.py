"""Distillation: a student learns from a teacher, and is exported and compiled in the same run. Needs torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from typing import TYPE_CHECKING, Any

import targets
from compiler.compression.job import JobOptions, Samples, start
from compiler.compression.model import CompressedModel, canonical
from compiler.errors import InputError, OptionError
from compiler.frontends.source import ImportOptions
from compiler.support.accuracy import Evaluate
from compiler.support.interrupts import interruptible
from compiler.support.optional import optional_module
from compiler.support.options import check_choices, options_of
from compiler.support.progress_bar import automatic, shows_progress

if TYPE_CHECKING:
    import torch


@interruptible
@shows_progress
def distill(
    student: Any,
    teacher: Any,
    batches: Iterable[Any],
    *,
    method: str = "response",
    task: Callable[[Any, Any], Any] | None = None,
    weight: float = 0.5,
    temperature: float = 4.0,
    features: Sequence[tuple[str, str]] = (),
    epochs: int = 5,
    learning_rate: float = 1e-3,
    optimizer: Callable[[Any], Any] | None = None,
    schedule: str = "constant",
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
) -> CompressedModel:
    """Train a student to imitate its teacher.

    Args:
        student: a `torch.nn.Module`, or the result of `prune` with `finetune=`, whose masks are then kept.
        teacher: a module or any function from a batch's inputs to logits; None with method "self".
        batches: iterated once per epoch: tensors of inputs, or pairs (inputs, labels). If the net has several inputs,
        they
            are a list or a tuple.
        method: "response": the teacher's softened outputs (Hinton, Vinyals and Dean 2015); "feature": also the inner
            tensors named in `features` (FitNets, Romero et al. 2015); "relation": also the distances and angles between
            samples (Park et al. 2019); "self": the untrained student is the teacher (Furlanello et al. 2018).
        task: a loss function of outputs and labels; cross-entropy if None and there are labels.
        weight: weight of the teacher's loss; the task's is 1 - weight.
        temperature: of the softened outputs.
        features: pairs of names of submodules of student and teacher whose outputs should match.
        optimizer: a function that returns an optimizer for the parameters; Adam with `learning_rate` if None.
        schedule: "constant", or "one-cycle": the learning rate rises over the first three tenths of the training, and
            falls to almost zero over the rest (Smith and Topin 2018).
        calibration, evaluate, max_drop, target, example_inputs, dynamic_shapes, threads, progress: as in
            `tensorwright.prune`; `max_drop` is relative to the untrained student.

    Raises:
        AccuracyError: the trained student is worse than the untrained one by more than `max_drop`.
        OptionError, InputError: an option or a batch is invalid.
        MissingDependencyError: torch is not installed.
    """
    options = options_of(DistillationOptions, locals())
    common = options_of(JobOptions, locals())
    return _distilled(
        student, options, common, ImportOptions(example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    )


def _distilled(
    student: Any, options: DistillationOptions, common: JobOptions, imports: ImportOptions
) -> CompressedModel:
    torch = optional_module("torch", "torch", "trains students")
    options.check()
    trained = getattr(student, "trained", None)
    net = trained.net if trained is not None else student
    if not isinstance(net, torch.nn.Module):
        raise OptionError(
            "distill trains a torch.nn.Module",
            "give one, or what prune returned for one with finetune= (any function: lambda net: None)",
        )
    net.eval()  # measured in eval mode; training mode is set later
    job = start(student, common, ImportOptions() if trained is not None else imports)
    train_student(net, options, job.report)
    if trained is not None:
        trained.apply()

    job.report("measure")
    candidate = canonical(trained.compressed() if trained is not None else imports.load(net), job.target)
    measure = job.measure(candidate)
    job.require(measure, "train longer, or with another weight= or temperature=")
    settings = {name: getattr(options, name) for name in ("method", "weight", "temperature", "epochs")}
    return job.result(f"distill {options.method}", candidate, measure, settings, trained=trained)


def train_student(net: torch.nn.Module, options: DistillationOptions, report: Callable[[str], None]) -> None:
    """Train a student like `distill`, without importing or measuring it. Raises OptionError and InputError."""
    options.check()
    with objective(net, options) as goal:
        _train(net, goal, options, report)


def _adam(learning_rate: float) -> Callable[[Any], Any]:
    import torch

    return lambda parameters: torch.optim.Adam(parameters, learning_rate)


def _train(net: torch.nn.Module, goal: Objective, options: DistillationOptions, report: Callable[[str], None]) -> None:
    optimizer = options.optimizer or _adam(options.learning_rate)
    rate = Scheduled(options.schedule, options.epochs)
    steps = None
    net.train()
    for epoch in range(options.epochs):
        report(f"epoch {epoch + 1} of {options.epochs}")
        count = 0
        for progress, batch in rate.batches(options.batches, epoch):
            inputs, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
            loss = goal.loss(inputs, labels)
            if steps is None:  # feature adapters exist only after the first loss
                steps = optimizer([*net.parameters(), *goal.parameters()])
            rate.apply(steps, progress)
            steps.zero_grad()
            loss.backward()
            steps.step()
            count += 1
        if not count:
            raise InputError("batches= holds no batch")
    net.eval()


# The settings of `distill`, checked before anything runs.

METHODS = ("response", "feature", "relation", "self")


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Options of `distill`, which documents the fields."""

    teacher: Any
    batches: Iterable[Any]
    method: str = "response"
    task: Callable[[Any, Any], Any] | None = None
    weight: float = 0.5
    temperature: float = 4.0
    features: Sequence[tuple[str, str]] = ()
    epochs: int = 5
    learning_rate: float = 1e-3
    optimizer: Callable[[Any], Any] | None = None
    schedule: str = "constant"

    def check(self) -> None:
        """Raise OptionError for invalid options; submodules in `features` are checked against the nets later."""
        if self.batches is None:
            raise OptionError("distill needs batches=", "compress(..., distill={'teacher': net, 'batches': data})")
        check_choices(self, method=METHODS, schedule=SCHEDULES)
        numbers = {name: getattr(self, name) for name in ("temperature", "epochs", "learning_rate")}
        wrong = [f"{name}={value}" for name, value in numbers.items() if not 0 < value < math.inf]
        if wrong or not 0 < self.weight <= 1:
            raise OptionError(", ".join([f"weight={self.weight}", *wrong]), "0 < weight <= 1, the rest positive")
        if self.method == "self" and self.teacher is not None:
            raise OptionError("method='self' has no teacher but the student", "give teacher=None")
        if self.method != "self" and not callable(self.teacher):
            raise OptionError("teacher= is neither a module nor a function", "give one, or method='self'")
        if (self.method == "feature") != bool(self.features):
            raise OptionError(
                "features= goes with method='feature'", "features=[('layer of student', 'layer of teacher')]"
            )
        if isinstance(self.batches, Iterator) and self.epochs > 1:
            raise OptionError("batches= can be iterated only once", "give a list or a DataLoader, or epochs=1")


# The losses for training a student.


@dataclass
class Objective:
    """Computes the loss of a batch.

    Attributes:
        seen: outputs of the hooked submodules for the last batch, by (side, index).
        adapters: linear maps from the student's features to the teacher's, if their widths differ.
    """

    net: Any
    teacher: Callable[[Any], Any]
    options: DistillationOptions
    seen: dict[tuple[str, int], Any] = field(default_factory=dict)
    adapters: dict[int, Any] = field(default_factory=dict)

    def parameters(self) -> list[Any]:
        """Parameters of the adapters."""
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]

    def loss(self, inputs: Any, labels: Any) -> Any:
        """The loss of a batch, a scalar tensor."""
        import torch

        arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        outputs = self.net(*arguments)
        with torch.no_grad():
            teacher_outputs = torch.as_tensor(self.teacher(*arguments))
        if teacher_outputs.shape != outputs.shape:
            raise OptionError(f"the teacher returns {tuple(teacher_outputs.shape)}, the student {tuple(outputs.shape)}")
        total = response(outputs, teacher_outputs, self.options.temperature)
        for index in range(len(self.options.features)):
            total = total + self._feature(index)
        if self.options.method == "relation":
            total = total + relation(outputs, teacher_outputs)
        if labels is None:
            return total
        task, weight = self.options.task or torch.nn.functional.cross_entropy, self.options.weight
        return weight * total + (1 - weight) * task(outputs, labels)

    def _feature(self, index: int) -> Any:
        import torch

        student, teacher = (self.seen[side, index] for side in ("student", "teacher"))
        if student.ndim != teacher.ndim or (student.shape[2:] != teacher.shape[2:] and student.ndim > 3):
            raise OptionError(
                f"features[{index}]: {tuple(student.shape)} cannot be compared with {tuple(teacher.shape)}"
            )
        axis = 1 if student.ndim > 3 else student.ndim - 1  # (batch, channels, height, width) or (..., width)
        student, teacher = student.movedim(axis, -1), teacher.movedim(axis, -1)
        if student.shape[-1] != teacher.shape[-1]:
            if index not in self.adapters:
                self.adapters[index] = torch.nn.Linear(student.shape[-1], teacher.shape[-1]).to(student.device)
            student = self.adapters[index](student)
        return torch.nn.functional.mse_loss(student, teacher.detach())


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
    """The objective, whose hooks are removed at the end. Raises OptionError if `features` has an unknown name."""
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


# Learning rate schedules.

SCHEDULES = ("constant", "one-cycle")
_WARM_UP = 0.3  # of a training
_FIRST, _LAST = 1 / 25, 1e-4  # of the peak, like torch's OneCycleLR except for the end


def one_cycle(progress: float) -> float:
    """The fraction of the peak at a point of the training, from 0 to 1: up along a cosine, then down along one."""
    if progress < _WARM_UP:
        return _between(_FIRST, 1.0, progress / _WARM_UP)
    return _between(1.0, _LAST, (progress - _WARM_UP) / (1 - _WARM_UP))


def _between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class Scheduled:
    """An optimizer's learning rates over a training; their initial values are the peaks.

    Args:
        schedule: one of `SCHEDULES`.
        epochs: epochs of the training.
    """

    def __init__(self, schedule: str, epochs: int) -> None:
        self._schedule, self._epochs = schedule, epochs
        self._peaks: list[float] = []

    def batches(self, batches: Iterable[Any], epoch: int) -> Iterator[tuple[float, Any]]:
        """(progress of the training, batch) of one epoch. Without a length, all batches count as the epoch's start."""
        length = length_hint(batches)
        for index, batch in enumerate(batches):
            part = min(index / length, 1.0) if length else 0.0
            yield (epoch + part) / self._epochs, batch

    def apply(self, optimizer: Any, progress: float) -> None:
        """Set the rates for the step at that progress."""
        if self._schedule == "constant":
            return
        groups = optimizer.param_groups
        self._peaks = self._peaks or [float(group["lr"]) for group in groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * one_cycle(progress)
