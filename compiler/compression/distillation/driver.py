"""`distill`: train a small net to do what a large one does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.compression.distillation.trainer import Batches, Settings, train
from compiler.errors import AccuracyError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    import torch

KINDS = ("response", "feature", "relation")
Evaluate = Callable[[Any], float]


@dataclass(frozen=True)
class DistillationReport:
    """What training did.

    Attributes:
        losses: the mean of each part of the loss, an epoch, by the part's name.
        teacher, before, after: what `evaluate` says of the teacher, and of the student untrained and trained; None
            without a measure.
        teacher_parameters, student_parameters: numbers of weights.
    """

    losses: tuple[dict[str, float], ...]
    teacher: float | None
    before: float | None
    after: float | None
    teacher_parameters: int
    student_parameters: int

    def __str__(self) -> str:
        lines = [f"{self.student_parameters} weights for the teacher's {self.teacher_parameters}"]
        if self.after is not None:
            lines.append(f"score {self.teacher:.6g} of the teacher, {self.before:.6g} before, {self.after:.6g} after")
        lines += [
            f"  epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in each.items())
            for epoch, each in enumerate(self.losses)
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class DistilledModel:
    """The trained student, in evaluation mode, for `compiler.compile(student, example_inputs=...)`."""

    student: Any
    report: DistillationReport


def distill(
    teacher: torch.nn.Module | None,
    student: torch.nn.Module,
    data: Callable[[], Batches],
    *,
    weights: Mapping[str, float] | None = None,
    features: Sequence[tuple[str, str]] = (),
    temperature: float = 4.0,
    task: Callable[[Any, Any], Any] | None = None,
    outputs: str = "logits",
    epochs: int = 10,
    learning_rate: float = 1e-3,
    optimizer: Callable[[Iterable[Any]], Any] | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> DistilledModel:
    """Train `student` to give what `teacher` gives.

    Args:
        teacher: run without gradients, in evaluation mode; None for self-distillation: the student as it comes is its
            own teacher (born-again networks, Furlanello et al., arXiv:1805.04770).
        student: trained in place of a copy: the argument itself stays as it is.
        data: called once an epoch, gives (inputs, targets) batches; inputs is a tensor or a tuple of them, targets is
            for `task` and may be None.
        weights: of the parts of the loss: "response" (the outputs), "feature" (results of inner modules) and
            "relation" (how the examples of a batch lie to each other); {"response": 1.0} when None. "task" weighs
            `task`, 1 where it is given.
        features: pairs (teacher's module, student's module), by the names of `named_modules`, for "feature" and
            "relation"; where they differ in width, a projection is learned with the student.
        temperature: of the softened probabilities.
        task: the ordinary loss, of (outputs, targets).
        outputs: "logits", compared as probabilities, or "values", compared by squared difference.
        optimizer: made of the parameters to train; Adam of `learning_rate`, decaying to nothing, when None.
        evaluate: how good a net is, higher is better; called with a module in evaluation mode.
        max_drop: how much of the teacher's score the student may lack, as a share; needs `evaluate`.
        progress: called with a line an epoch.

    Raises:
        AccuracyError: the trained student lacks more than `max_drop`.
        OptionError: an option is at fault.
        MissingDependencyError: torch is not installed.
    """
    torch = _torch()
    settings = _checked(weights, features, temperature, task, outputs, evaluate, max_drop)
    if epochs < 1:
        raise OptionError(f"epochs={epochs}", "train for 1 or more")
    torch.manual_seed(seed)
    net = copy.deepcopy(student)
    guide = (copy.deepcopy(student) if teacher is None else teacher).eval()
    scores = [None, None] if evaluate is None else [float(evaluate(guide)), float(evaluate(net.eval()))]
    losses = train(guide, net, data, settings, epochs, learning_rate, optimizer, progress or _silent)
    net.eval()
    after = None if evaluate is None else float(evaluate(net))
    report = DistillationReport(tuple(losses), scores[0], scores[1], after, _size(guide), _size(net))
    if max_drop is not None:
        _check_drop(report, max_drop)
    return DistilledModel(net, report)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("distillation needs torch", "pip install 'tensorwright[torch]'") from error
    return torch


def _checked(
    weights: Mapping[str, float] | None,
    features: Sequence[tuple[str, str]],
    temperature: float,
    task: Callable[[Any, Any], Any] | None,
    outputs: str,
    evaluate: Evaluate | None,
    max_drop: float | None,
) -> Settings:
    chosen = dict(weights if weights is not None else {"response": 1.0})
    unknown = sorted(set(chosen) - {*KINDS, "task"})
    if unknown:
        raise OptionError(f"weights= has {', '.join(unknown)}", f"the parts of a loss are {', '.join(KINDS)} and task")
    if any(value < 0 for value in chosen.values()) or not any(chosen.values()):
        raise OptionError(f"weights={chosen}", "give weights of 0 or more, one of them above 0")
    if task is None and chosen.get("task"):
        raise OptionError("weights= has task, but there is no task=", "give a loss of (outputs, targets)")
    if task is not None:
        chosen.setdefault("task", 1.0)
    if any(chosen.get(kind) for kind in ("feature", "relation")) and not features:
        raise OptionError("no features= are named", "give pairs of names: (the teacher's module, the student's)")
    if outputs not in ("logits", "values"):
        raise OptionError(f"outputs={outputs!r}", "use 'logits' or 'values'")
    if temperature <= 0:
        raise OptionError(f"temperature={temperature}", "give a number above 0, like 4")
    if max_drop is not None and evaluate is None:
        raise OptionError("max_drop= is given without evaluate=", "give a measure of a net, higher is better")
    return Settings(chosen, features, temperature, task, outputs == "logits")


def _size(net: Any) -> int:
    return sum(each.numel() for each in net.parameters())


def _check_drop(report: DistillationReport, max_drop: float) -> None:
    assert report.teacher is not None
    assert report.after is not None
    lacking = (report.teacher - report.after) / abs(report.teacher) if report.teacher else -report.after
    if lacking > max_drop:
        raise AccuracyError(
            f"the student reaches {report.after:.6g} of the teacher's {report.teacher:.6g}, which is"
            f" {lacking:.3%} less; the limit is {max_drop:.3%}",
            "train longer, use a larger student, or allow more",
        )


def _silent(_: str) -> None:
    return None
