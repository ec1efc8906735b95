"""The bound for choices that rules fix: each kernel with its best value."""

from __future__ import annotations

import pytest

from benchmarks._tuner_choices import best_of_each, kernels_of


def test_each_kernel_takes_its_fastest_turn_and_its_best_variant() -> None:
    default = kernels_of([{"a": 3.0, "b": 5.0}, {"a": 4.0, "b": 2.0}])
    assert default == pytest.approx({"a": 3.0, "b": 2.0})
    # A kernel that a variant lacks, and one that only a variant has, change nothing.
    assert best_of_each(default, [{"a": 2.5}, {"b": 9.0, "c": 1.0}]) == pytest.approx(2.5 + 2.0)
