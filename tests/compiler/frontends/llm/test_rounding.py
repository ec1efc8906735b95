"""Rounding weights to 4 bits: scales of groups, and GPTQ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.frontends.llm import LanguageModelOptions
from compiler.frontends.llm.group_rounding import best_scales, rounded_by_gptq

Array = np.ndarray[Any, Any]


def integers_of(values: Array, scales: Array) -> Array:
    """Round groups (..., 32) to the nearest integers, in float64."""
    wide = scales.astype(np.float64)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.clip(np.rint(values / wide), -8, 7))


def errors_of(values: Array, scales: Array, importance: Array) -> Array:
    off = integers_of(values, scales) * scales.astype(np.float64)[..., None] - values
    return np.asarray((off**2 * importance).sum(-1))


def test_scales_of_groups_are_the_best_of_those_that_are_tried() -> None:
    random = np.random.default_rng(0)
    groups = random.standard_normal((37, 3, 32)).astype(np.float32)
    groups[5, 1] = 0
    importance = random.random((3, 32)).astype(np.float32)
    found = best_scales(groups, importance)
    largest = np.take_along_axis(groups, abs(groups).argmax(-1)[..., None], -1)[..., 0]
    tried = [(largest / np.float32(-8 + 0.15 * (trial - 7))).astype(np.float16) for trial in range(15)]
    least = np.min([errors_of(groups, scales, importance) for scales in tried], 0)
    np.testing.assert_allclose(errors_of(groups, found, importance), least, rtol=1e-3)
    assert found[5, 1] == 0


def eliminated(values: Array, scales: Array, gram: Array) -> Array:
    """GPTQ in float64: the inverse shrinks by one column with each rounded one."""
    left, depth = values.astype(np.float64), values.shape[1]
    inverse = np.linalg.inv(gram + 0.01 * np.mean(np.diagonal(gram)) * np.eye(depth))
    wide = np.repeat(scales.astype(np.float64), 32, 1)
    integers = np.zeros(values.shape)
    for at in range(depth):
        integers[:, at] = np.clip(np.rint(left[:, at] / wide[:, at]), -8, 7)
        error = (left[:, at] - integers[:, at] * wide[:, at]) / inverse[at, at]
        left[:, at:] -= error[:, None] * inverse[at, at:]
        inverse = inverse - np.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return integers


def test_gptq_rounds_as_by_elimination_and_changes_products_less() -> None:
    random = np.random.default_rng(1)
    depth = 80  # the last group is not full
    data = random.standard_normal((512, depth)) @ random.standard_normal((depth, depth))
    weight = random.standard_normal((24, depth)).astype(np.float32)
    gram = (data.T @ data).astype(np.float32)
    integers, scales = rounded_by_gptq(weight, gram)
    same = integers[:, :depth] == eliminated(weight, scales[:, :3], gram.astype(np.float64))
    assert same.mean() > 0.98  # ties and float32
    assert not integers[:, depth:].any()

    def change(integers: Array, scales: Array) -> float:
        values = integers.reshape(24, 3, 32) * scales.astype(np.float64)[..., None]
        return float(np.square(data @ (values.reshape(24, -1)[:, :depth] - weight).T).mean())

    padded = np.zeros((24, 96), np.float32)
    padded[:, :depth] = weight
    groups = padded.reshape(24, 3, 32)
    nearest = best_scales(groups)
    assert change(integers, scales) < 0.7 * change(integers_of(groups, nearest), nearest)


@pytest.mark.parametrize(
    ("precision", "stored", "cache", "rounds"),
    [
        (None, "F32", "float32", False),
        (None, "F16", "float16", False),
        (None, "BF16", "float16", True),
        (None, "Q8_0", "float16", True),
        ("float32", "Q8_0", "float32", False),
        ("bf16", "F32", "float16", True),
        ("int4", "F32", "float16", True),
        ("float32", "F32", "int8", True),
    ],
)
def test_attention_rounds_where_products_do(precision: str | None, stored: str, cache: str, rounds: bool) -> None:
    assert LanguageModelOptions(precision).rounds_attention(cache, stored=stored) == rounds
    assert not LanguageModelOptions(precision, activations="float32").rounds_attention(cache, stored=stored)
