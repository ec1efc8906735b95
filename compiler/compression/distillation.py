"""Distillation: a student learns from a teacher, and is exported and compiled in the same run. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import targets
from compiler.compression.canonical import canonical
from compiler.compression.distillation_losses import Objective, objective
from compiler.compression.distillation_settings import DistillationOptions
from compiler.compression.job import JobOptions, start
from compiler.compression.learning_rate import Scheduled
from compiler.compression.model import CompressedModel
from compiler.compression.samples import Samples
from compiler.errors import InputError, MissingDependencyError, OptionError
from compiler.frontends.source import ImportOptions
from compiler.support.accuracy import Evaluate
from compiler.support.progress_bar import automatic, shows_progress

if TYPE_CHECKING:
    import torch


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
    """Train a student to do as its teacher does.

    Args:
        student: a `torch.nn.Module`, or what `prune` made of one with `finetune=`: then its masks hold.
        teacher: a module or any function from a batch's inputs to logits; None with method "self".
        batches: gone through once an epoch: tensors of inputs, or pairs (inputs, labels). Inputs of a net with several
            are a list or a tuple.
        method: "response": the teacher's softened outputs (Hinton, Vinyals and Dean 2015); "feature": also the inner
            tensors named in `features` (FitNets, Romero et al. 2015); "relation": also the distances and angles between
            samples (Park et al. 2019); "self": the student as it is now is the teacher (Furlanello et al. 2018).
        task: of outputs and labels, a loss; cross-entropy when None and there are labels.
        weight: of what the teacher says; 1 - weight is that of the task.
        temperature: of the softened outputs.
        features: pairs of names of submodules of student and teacher whose outputs are to be alike.
        optimizer: given the parameters, an optimizer; Adam with `learning_rate` when None.
        schedule: "constant", or "one-cycle": the learning rate rises over the first three tenths of the training, and
            falls to almost nothing over the rest (Smith and Topin 2018).
        calibration, evaluate, max_drop, target, example_inputs, dynamic_shapes, threads, progress: as
            `tensorwright.prune` takes them; `max_drop` is measured against the student before.

    Raises:
        AccuracyError: the student is worse than before by more than `max_drop`.
        OptionError, InputError: an option or a batch is at fault.
        MissingDependencyError: torch is not installed.
    """
    options = DistillationOptions(
        teacher=teacher,
        batches=batches,
        method=method,
        task=task,
        weight=weight,
        temperature=temperature,
        features=features,
        epochs=epochs,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=schedule,
    )
    common = JobOptions(
        target=target,
        threads=threads,
        calibration=calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        progress=progress,
    )
    return _distilled(
        student, options, common, ImportOptions(example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    )


def _distilled(
    student: Any, options: DistillationOptions, common: JobOptions, imports: ImportOptions
) -> CompressedModel:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("distillation needs PyTorch", "pip install 'tensorwright[torch]'") from error
    options.check()
    trained = getattr(student, "trained", None)
    net = trained.net if trained is not None else student
    if not isinstance(net, torch.nn.Module):
        raise OptionError(
            "distill trains a torch.nn.Module",
            "give one, or what prune returned for one with finetune= (any function: lambda net: None)",
        )
    net.eval()  # as it is measured; training mode comes later
    job = start(student, common, ImportOptions() if trained is not None else imports)
    train_student(net, options, job.report)
    if trained is not None:
        trained.apply()

    job.report("measure")
    candidate = canonical(trained.compressed() if trained is not None else imports.load(net), job.target)
    after = job.measure(candidate)
    job.require(after, "train longer, or with another weight= or temperature=")
    settings = {name: getattr(options, name) for name in ("method", "weight", "temperature", "epochs")}
    return job.result(f"distill {options.method}", candidate, after, settings, trained=trained)


def train_student(net: torch.nn.Module, options: DistillationOptions, report: Callable[[str], None]) -> None:
    """Train a student as `distill` does, without importing or measuring it. Raises OptionError and InputError."""
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
            if steps is None:  # adapters of features exist after the first loss
                steps = optimizer([*net.parameters(), *goal.parameters()])
            rate.apply(steps, progress)
            steps.zero_grad()
            loss.backward()
            steps.step()
            count += 1
        if not count:
            raise InputError("batches= holds no batch")
    net.eval()
