"""Learning rates over a training."""

from __future__ import annotations

import pytest
import torch

from compiler.compression.distillation import DistillationOptions, Scheduled, one_cycle, train_student
from compiler.errors import OptionError


def test_one_cycle_rises_and_falls() -> None:
    rates = [one_cycle(step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[30] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(1e-4)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_progress_counts_batches_where_they_have_a_length() -> None:
    rate = Scheduled("one-cycle", 2)
    assert [progress for progress, _ in rate.batches([1, 2], 1)] == [0.5, 0.75]
    assert [progress for progress, _ in rate.batches(iter("ab"), 1)] == [0.5, 0.75]
    assert [progress for progress, _ in rate.batches((each for each in "ab"), 1)] == [0.5, 0.5]


def test_a_student_is_trained_along_the_schedule() -> None:
    seen: list[float] = []

    class Noted(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            seen.append(self.param_groups[0]["lr"])
            super().step(closure)

    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))] * 5
    for schedule in ("constant", "one-cycle"):
        options = DistillationOptions(
            teacher=torch.nn.Linear(3, 2),
            batches=batches,
            epochs=2,
            optimizer=lambda parameters: Noted(parameters, 0.5),
            schedule=schedule,
        )
        train_student(torch.nn.Linear(3, 2), options, lambda step: None)
    assert seen[:10] == [0.5] * 10
    assert seen[10:] == pytest.approx([0.5 * one_cycle(step / 10) for step in range(10)])
    with pytest.raises(OptionError, match="schedule='cosine'"):
        DistillationOptions(teacher=torch.nn.Linear(3, 2), batches=batches, schedule="cosine").check()


def test_a_student_of_several_inputs_is_trained() -> None:
    batches = [((torch.ones(2, 3), torch.ones(2, 4)), torch.tensor([0, 1]))]
    student, teacher = torch.nn.Bilinear(3, 4, 2), torch.nn.Bilinear(3, 4, 2)
    before = student.weight.detach().clone()
    train_student(student, DistillationOptions(teacher=teacher, batches=batches, epochs=1), lambda step: None)
    assert not torch.equal(student.weight, before)
