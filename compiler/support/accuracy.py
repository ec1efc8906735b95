"""The caller's accuracy measure, and the number of layers that must stay in float to meet the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compiler.errors import InputError, OptionError, TensorwrightError, type_text

Array = np.ndarray
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Evaluate = Callable[[Run], float]
_MEASURE = "give a function of `run`, which maps {input name: array} to {output name: array}, that returns a number"


def likeness(samples: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]]) -> Evaluate:
    """A measure for models without one: the mean cosine between the outputs and the float model's outputs. Raises
    InputError if the float model's outputs are not finite, so nothing can be compared with them."""
    for index, outputs in enumerate(expected):
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"the float model returns NaN or infinite numbers on calibration[{index}], output {name!r}",
                    "leave that sample out, or give evaluate=",
                )

    def evaluate(run: Run) -> float:
        cosines = []
        for sample, wanted in zip(samples, expected, strict=True):
            got = run(sample)
            cosines += [cosine(got[name], array) for name, array in wanted.items() if array.dtype.kind == "f"]
        return float(np.mean(cosines)) if cosines else 1.0

    return evaluate


def cosine(left: Array, right: Array) -> float:
    """Cosine of two tensors as vectors; if one is zero, 1 if both are equal, else 0."""
    a, b = left.ravel().astype(np.float64), right.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def score(evaluate: Evaluate, run: Run) -> float:
    """Score by `evaluate`. Raises OptionError if `evaluate` fails or returns no finite number."""
    if not callable(evaluate):
        raise OptionError(f"evaluate= is {type_text(evaluate)}", _MEASURE)
    try:
        answer: Any = evaluate(run)
    except TensorwrightError:
        raise
    except Exception as error:
        raise OptionError(f"evaluate= failed: {type(error).__name__}: {error}", _MEASURE) from error
    try:
        value = float(answer)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        shown = answer if isinstance(answer, str | float) or answer is None else f"{type_text(answer)}"
        raise OptionError(f"evaluate= returned {shown}", "return a finite number, higher where the model is better")
    return value


def check_max_drop(max_drop: float) -> None:
    """Raise OptionError unless the value is a fraction from 0 to 1."""
    if not isinstance(max_drop, int | float) or not 0 <= max_drop < 1:
        raise OptionError(f"max_drop={max_drop} is not a fraction from 0 up to 1", "for example, 0.01")


def relative_drop(before: float, after: float) -> float:
    """The loss relative to the original value (the difference if that is 0); negative for a gain."""
    return (before - after) / abs(before) if before else before - after


def fewest(holds: Callable[[int], bool], count: int) -> int | None:
    """The smallest number from 1 to `count` for which `holds`, if larger numbers never hurt; None if `count` does not
    hold.

    Tries 1, 2, 4, ..., and then bisects the interval between the last two.
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
