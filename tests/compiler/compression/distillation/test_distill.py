"""Students distilled from a teacher on scikit-learn's digits, and refused arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from benchmarks.digits import Digits, accuracy, load_digits
from compiler.errors import AccuracyError, InputError, OptionError


class _Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(x))
        return result


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The batches are small; on a busy machine torch's threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def _batches(digits: Digits) -> list[tuple[Any, Any]]:
    images, labels = map(_tensor, digits.train)
    return list(zip(images.split(60), labels.split(60), strict=True))


def _options(digits: Digits) -> dict[str, Any]:
    example = _tensor(digits.test[0][:50])
    return {"evaluate": accuracy(digits, "x"), "example_inputs": (example,), "threads": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 1.0},
        {"method": "feature", "features": [("body", "body")]},
        {"method": "relation"},
    ],
    ids=["response", "feature", "relation"],
)
def test_a_student_comes_near_its_teacher(digits: Digits, teacher: nn.Module, options: dict[str, Any]) -> None:
    student = _Net(24)
    batches = [images for images, _ in _batches(digits)] if options.get("weight") == 1.0 else _batches(digits)
    result = compiler.distill(student, teacher, batches, epochs=24, learning_rate=6e-3, **_options(digits), **options)
    before, after = result.report.before.score, result.report.after.score
    assert before is not None
    assert after is not None
    assert before < 0.5
    images, labels = map(_tensor, digits.test)
    with torch.no_grad():
        best = float((teacher(images).argmax(1) == labels).float().mean())
        own = student(images[:50]).numpy()
    assert after > best - 0.06, str(result.report)
    (got,) = compiler.compile(result, threads=1).run([images[:50].numpy()]).values()
    np.testing.assert_allclose(got, own, rtol=1e-4, atol=1e-4)


def test_a_net_teaches_itself(digits: Digits, teacher: nn.Module) -> None:
    """The teacher is the untrained student; the labels make a difference."""
    report = compiler.distill(teacher, None, _batches(digits), method="self", epochs=2, **_options(digits)).report
    assert report.drop is not None
    assert report.drop <= 0.01


def test_a_student_that_gets_worse_is_an_error(digits: Digits, teacher: nn.Module) -> None:
    with pytest.raises(AccuracyError, match="does not hold"):
        compiler.distill(
            teacher, _Net(1), _batches(digits), weight=1.0, epochs=1, learning_rate=0.1, **_options(digits)
        )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"method": "respond"}, "respond"),
        ({"weight": 0.0}, "weight"),
        ({"method": "feature"}, "features="),
        ({"method": "feature", "features": [("body", "tail")]}, "'tail'"),
        ({"method": "self"}, "no teacher"),
        ({"temperature": 0.0}, "temperature"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_options_are_checked(digits: Digits, teacher: nn.Module, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        compiler.distill(_Net(4), teacher, _batches(digits)[:1], example_inputs=(torch.zeros(1, 1, 16, 16),), **options)


def test_batches_that_are_none(teacher: nn.Module) -> None:
    options: dict[str, Any] = {"example_inputs": (torch.zeros(1, 1, 16, 16),)}
    with pytest.raises(InputError, match="no batch"):
        compiler.distill(_Net(4), teacher, [], **options)
    with pytest.raises(InputError, match="batch of one"):
        compiler.distill(_Net(4), teacher, [torch.zeros(1, 1, 16, 16)], method="relation", **options)
