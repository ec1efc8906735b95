"""The caller's measure of a model, and how many layers must go back to float to hold his limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import OptionError, TensorwrightError

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Evaluate = Callable[[Run], float]


def likeness(samples: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]]) -> Evaluate:
    """A measure for models without one: the mean cosine between the outputs and those of the float model."""

    def evaluate(run: Run) -> float:
        cosines = []
        for sample, wanted in zip(samples, expected, strict=True):
            got = run(sample)
            cosines += [cosine(got[name], array) for name, array in wanted.items() if array.dtype.kind == "f"]
        return float(np.mean(cosines)) if cosines else 1.0

    return evaluate


def cosine(left: Array, right: Array) -> float:
    """Of two tensors taken as vectors; of one that is zero 1 where both are equal, else 0."""
    a, b = left.ravel().astype(np.float64), right.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def score(evaluate: Evaluate, run: Run) -> float:
    """What `evaluate` says. Raises OptionError when that fails, or is not a finite number."""
    try:
        value = float(evaluate(run))
    except TensorwrightError:
        raise
    except Exception as error:
        raise OptionError(
            f"evaluate= failed: {type(error).__name__}: {error}",
            "it is given a function from {input name: array} to {output name: array}, and returns a number",
        ) from error
    if not np.isfinite(value):
        raise OptionError(f"evaluate= returned {value}", "return a number, higher where the model is better")
    return value


def relative_drop(before: float, after: float) -> float:
    """How much was lost, as a share of what there was (as a difference where that was 0); below 0 is a gain."""
    return (before - after) / abs(before) if before else before - after


def fewest(holds: Callable[[int], bool], count: int) -> int | None:
    """The smallest number of 1 to `count` for which `holds`, if more never hurts; None when not even `count` does.

    Tries 1, 2, 4, ... and then halves what lies between the last two.
    """
    below, step = 0, 1
    while True:
        tried = min(step, count)
        if holds(tried):
            break
        below = tried
        if tried == count:
            return None
        step *= 2
    while tried - below > 1:
        middle = (tried + below) // 2
        if holds(middle):
            tried = middle
        else:
            below = middle
    return tried
