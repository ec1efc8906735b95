"""Confidence scores per row, which cascades decide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from compiler.errors import InputError, OptionError
from compiler.serving.request import Array

Score = Callable[[Mapping[str, Array]], Array]


def _margin(values: Array) -> Array:
    if values.shape[1] < 2:
        return np.full(len(values), np.inf)
    largest = np.partition(values, -2, axis=1)[:, -2:]
    return np.asarray(largest[:, 1] - largest[:, 0])


def _probability(values: Array) -> Array:
    return np.asarray(values.max(axis=1))


def _softmax(values: Array) -> Array:
    return np.asarray(1.0 / np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1))


def _value(values: Array) -> Array:
    return np.asarray(values.mean(axis=1))


SCORES: dict[str, Callable[[Array], Array]] = {
    "margin": _margin,
    "probability": _probability,
    "softmax": _softmax,
    "value": _value,
}
"""By name: the difference of the two largest values (of logits, probabilities, similarities); the largest value, for
probabilities; the largest after a softmax, for logits; the value itself, for a model that says how certain it is."""


def score_of(kind: str, output: str) -> Score:
    """A function from outputs by name to a number per row, float64 (rows,), higher where the model is more certain.

    NaN is the lowest: a row whose score is not a number is not certain.

    Raises:
        OptionError: there is no score of that name.
    """
    if kind not in SCORES:
        raise OptionError(f"there is no score {kind!r}", f"known: {', '.join(SCORES)}")

    def score(outputs: Mapping[str, Array]) -> Array:
        if output not in outputs:
            raise InputError(f"the model has no output {output!r} to be scored", f"its outputs are {sorted(outputs)}")
        array = outputs[output]
        values = array.reshape(len(array), -1).astype(np.float64) if array.size else np.zeros((len(array), 1))
        found = SCORES[kind](values)
        return np.where(np.isnan(found), -np.inf, found)

    return score
