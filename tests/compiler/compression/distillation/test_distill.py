"""Students trained after a teacher on scikit-learn's digits, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from benchmarks.digits import Digits, load_digits
from compiler.errors import AccuracyError, OptionError


class _Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(x))
        return result


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


@pytest.fixture(scope="module")
def teacher(digits: Digits) -> nn.Module:
    torch.manual_seed(0)
    net = _Net(256)
    images, labels = (torch.from_numpy(each) for each in digits.train)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    return net


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    return torch.from_numpy(array)


def _batches(digits: Digits) -> Any:
    images, labels = map(_tensor, digits.train)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(images.split(60), labels.split(60), strict=True)

    return batches


def _accuracy(digits: Digits) -> Any:
    images, labels = digits.test

    def evaluate(net: nn.Module) -> float:
        assert not net.training
        with torch.no_grad():
            return float((net(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())

    return evaluate


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": {"response": 1.0, "feature": 1.0}, "features": [("body", "body")]},
        {"weights": {"response": 0.5, "relation": 1.0}, "features": [("body", "body")]},
        {"weights": {"response": 0.5}, "task": nn.functional.cross_entropy},
        {"weights": {"response": 1.0}, "outputs": "values"},
    ],
    ids=["response", "feature", "relation", "task", "values"],
)
def test_a_student_comes_near_its_teacher_without_labels(
    digits: Digits, teacher: nn.Module, options: dict[str, Any]
) -> None:
    student = _Net(24)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = compiler.distill(
        teacher, student, _batches(digits), epochs=24, learning_rate=6e-3, evaluate=_accuracy(digits), **options
    )
    report = result.report
    assert report.teacher is not None
    assert report.after is not None
    assert report.after > report.teacher - 0.06, str(report)
    assert report.before is not None
    assert report.before < 0.5
    for part, first in report.losses[0].items():
        assert report.losses[-1][part] < first
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_trained_student_compiles_to_the_same_numbers(digits: Digits, teacher: nn.Module) -> None:
    result = compiler.distill(teacher, _Net(16), _batches(digits), epochs=1)
    image = digits.test[0][:1]
    module = compiler.compile(result.student, example_inputs=(torch.from_numpy(image),))
    (got,) = module.run([image]).values()
    wanted = result.student(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_net_teaches_itself(digits: Digits, teacher: nn.Module) -> None:
    """The teacher is the student as it comes; its task keeps both apart."""
    result = compiler.distill(
        None, teacher, _batches(digits), task=nn.functional.cross_entropy, epochs=2, evaluate=_accuracy(digits)
    )
    assert result.report.teacher == result.report.before
    assert result.report.after is not None
    assert result.report.before is not None
    assert result.report.after >= result.report.before - 0.02
    assert set(result.report.losses[0]) == {"response", "task"}


def test_a_student_that_stays_behind_is_an_error(digits: Digits, teacher: nn.Module) -> None:
    with pytest.raises(AccuracyError, match="the limit is"):
        compiler.distill(
            teacher,
            _Net(1),
            _batches(digits),
            epochs=1,
            evaluate=_accuracy(digits),
            max_drop=0.05,
        )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weights": {"respond": 1.0}}, "respond"),
        ({"weights": {"response": 0.0}}, "above 0"),
        ({"weights": {"feature": 1.0}}, "no features="),
        ({"weights": {"feature": 1.0}, "features": [("body", "tail")]}, "no module 'tail'"),
        ({"weights": {"task": 1.0}}, "no task="),
        ({"temperature": 0.0}, "temperature"),
        ({"outputs": "images"}, "outputs="),
        ({"epochs": 0}, "epochs=0"),
        ({"max_drop": 0.1}, "without evaluate="),
    ],
)
def test_options_are_checked(digits: Digits, teacher: nn.Module, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        compiler.distill(teacher, _Net(4), _batches(digits), **options)


def test_batches_must_come_each_epoch(teacher: nn.Module) -> None:
    with pytest.raises(OptionError, match="no batches"):
        compiler.distill(teacher, _Net(4), list)
