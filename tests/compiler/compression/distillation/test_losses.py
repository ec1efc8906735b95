"""Losses against their formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compiler.compression.distillation import relation, response

Array = np.ndarray[Any, Any]


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    result: Array = powers / powers.sum(-1, keepdims=True)
    return result


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_response(temperature: float) -> None:
    student, teacher = np.random.default_rng(0).standard_normal((2, 3, 5, 7))
    own, wanted = _softmax(student / temperature), _softmax(teacher / temperature)
    expected = (wanted * np.log(wanted / own)).sum(-1).mean() * temperature**2
    got = response(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert float(got) == pytest.approx(expected, rel=1e-10)


def _huber(left: Array, right: Array) -> float:
    difference = np.abs(left - right)
    return float(np.where(difference < 1, difference**2 / 2, difference - 0.5).mean())


def test_relation() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((5, 3)), random.standard_normal((5, 2, 4))

    def parts(features: Array) -> tuple[Array, Array]:
        flat = features.reshape(len(features), -1)
        pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
        distances = np.array([np.linalg.norm(flat[i] - flat[j]) for i, j in pairs])
        angles = np.zeros((5, 5, 5))
        for i, j, k in np.ndindex(5, 5, 5):
            if i not in (j, k):
                a, b = flat[i] - flat[j], flat[i] - flat[k]
                angles[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return distances / distances.mean(), angles

    own, wanted = parts(student), parts(teacher)
    expected = _huber(own[0], wanted[0]) + 2 * _huber(own[1], wanted[1])
    got = relation(torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(got) == pytest.approx(expected, rel=1e-9)


def test_relation_of_equal_examples_has_gradients() -> None:
    student = torch.ones(4, 3, requires_grad=True)
    loss: Any = relation(student, torch.randn(4, 3))
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
