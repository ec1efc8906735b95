"""Calibration of a cascade: chooses the threshold that keeps the accuracy, and estimates the cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact.storage import write_json
from compiler.errors import InputError, NothingGainedError, OptionError, storage_errors
from compiler.profiling.timing import interleaved_seconds
from compiler.runtime import Module
from compiler.runtime.identity import module_identity
from compiler.serving.caches.digests import request_digest
from compiler.serving.request import Array
from compiler.serving.rows import joined, row_count
from compiler.support.accuracy import Evaluate, Run, check_max_drop, relative_drop
from compiler.support.accuracy import score as evaluated

_STEPS = 128
MIN_ROWS = 50


@dataclass(frozen=True)
class CascadeCalibration:
    """Calibration of a cascade.

    Attributes:
        score, output: certainty score of the small model (`scores.SCORES`), and the output from which it is computed.
        threshold: rows whose score is below it go to the large model.
        max_drop: limit of the drop of `score_cascade` relative to `score_large`.
        score_small, score_large, score_cascade: values of the measure on the calibration data.
        accuracy, small_accuracy: the scores of the cascade and of the small model relative to the large one's.
        large_share: fraction of rows that go to the large model.
        cost_small_ms, cost_large_ms, cost_ms: processor milliseconds per row of each, and expected for the cascade.
        rows: number of scored rows.
        small_identity, large_identity: digests of the modules' files; "" for modules that were not read from files.
    """

    score: str
    output: str
    threshold: float
    max_drop: float
    score_small: float
    score_large: float
    score_cascade: float
    accuracy: float
    small_accuracy: float
    large_share: float
    cost_small_ms: float
    cost_large_ms: float
    cost_ms: float
    rows: int
    small_identity: str = ""
    large_identity: str = ""

    @property
    def cost_share(self) -> float:
        """The cost of the cascade relative to the large model."""
        return self.cost_ms / self.cost_large_ms

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises StorageError."""
        write_json(path, asdict(self))

    def __str__(self) -> str:
        return (
            f"{self.score} of {self.output!r} below {self.threshold:.6g}: {self.large_share:.1%} of {self.rows} rows go"
            f" to the large model\nscore: small {self.score_small:.6g}, large {self.score_large:.6g}, cascade"
            f" {self.score_cascade:.6g} (limit of the drop {self.max_drop:.3%})\ncost of a row:"
            f" small {self.cost_small_ms:.4g} ms, large {self.cost_large_ms:.4g} ms, cascade {self.cost_ms:.4g} ms"
            f" ({self.cost_share:.2f} of the large model)"
        )


def calibrate_cascade(
    small: Module,
    large: Module,
    evaluate: Evaluate,
    *,
    score: str = "margin",
    output: str | None = None,
    max_drop: float = 0.0,
    costs_ms: tuple[float, float] | None = None,
    feeds: Mapping[str, str] | None = None,
) -> CascadeCalibration:
    """Find the threshold at which the fewest rows go to the large model while the accuracy holds.

    Args:
        small, large: modules with the same inputs and outputs, and a batch dimension. With `feeds`, the two halves of a
            network with an early exit: the large model is then both of them together.
        evaluate: a function of `run` that returns the score, higher is better, as for `quantize`. The threshold is
            chosen on its data: evaluate the result on other data.
        score: a name in `scores.SCORES`.
        output: the scored output; None: the only output.
        max_drop: maximum relative loss of the large model's score.
        costs_ms: processor milliseconds per row of the two modules; None: measured on the data.
        feeds: inputs of `large` that are outputs of `small`.

    Raises:
        OptionError: an option is invalid, or `evaluate` uses fewer than 50 rows.
        NothingGainedError: a cascade within the limit costs as much as the large model alone.
    """
    check_max_drop(max_drop)
    output = output if output is not None else _only_output(large)
    both = BothModels(small, large, feeds or {})
    score_large, score_small = evaluated(evaluate, both.large), evaluated(evaluate, both.small)
    scorer = score_of(score, output)
    scores = np.sort(np.concatenate([scorer(outputs) for outputs in both.small_outputs.values()]))
    if len(scores) < MIN_ROWS:
        raise OptionError(f"evaluate= shows {len(scores)} rows", f"give at least {MIN_ROWS}")
    threshold, score_cascade = _threshold(evaluate, both, scorer, scores, score_large, max_drop)
    first, second = costs_ms if costs_ms is not None else both.costs_ms()
    share = float((scores < threshold).mean())
    result = CascadeCalibration(
        score=score,
        output=output,
        threshold=threshold,
        max_drop=max_drop,
        score_small=score_small,
        score_large=score_large,
        score_cascade=score_cascade,
        accuracy=1.0 - relative_drop(score_large, score_cascade),
        small_accuracy=1.0 - relative_drop(score_large, score_small),
        large_share=share,
        cost_small_ms=first,
        cost_large_ms=first + second if feeds else second,
        cost_ms=first + share * second,
        rows=len(scores),
        small_identity=_identity(small),
        large_identity=_identity(large),
    )
    if result.cost_ms >= result.cost_large_ms:
        raise NothingGainedError(
            f"the cascade costs more than the large model alone\n{result}",
            "use a better small model or another score, or allow a larger max_drop",
        )
    return result


def _only_output(module: Module) -> str:
    names = [each.name for each in module.outputs]
    if len(names) != 1:
        raise OptionError(f"the model has outputs {names}", "select the one to score: output=")
    return names[0]


def _identity(module: Module) -> str:
    return module_identity(module) if module.manifest.checksums else ""


class BothModels:
    """Runs of both models, cached by input."""

    def __init__(self, small: Module, large: Module, feeds: Mapping[str, str]) -> None:
        """Raises OptionError if `feeds` names an unknown input or output."""
        self._small, self._large, self._feeds = small, large, feeds
        for names, tensors, what in (
            (feeds, large.inputs, "large model's inputs"),
            (feeds.values(), small.outputs, "small model's outputs"),
        ):
            known = [each.name for each in tensors]
            for name in names:
                if name not in known:
                    raise OptionError(f"feeds= names {name!r}", f"the {what} are {', '.join(known)}")
        self.small_outputs: dict[str, Mapping[str, Array]] = {}
        self.large_outputs: dict[str, Mapping[str, Array]] = {}
        self.inputs: dict[str, Mapping[str, Array]] = {}

    def small(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the small model's outputs."""
        key = request_digest("", inputs, None)
        if key not in self.small_outputs:
            self.inputs[key] = {name: np.array(array) for name, array in inputs.items()}
            self.small_outputs[key] = self._small.run(self._taken(self._small, inputs))
        return self.small_outputs[key]

    def large(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the large model's outputs."""
        key = request_digest("", inputs, None)
        if key not in self.large_outputs:
            self.large_outputs[key] = self._large.run(self._for_large(inputs))
        return self.large_outputs[key]

    def _taken(self, module: Module, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Select a module's inputs from the inputs of both; all of them without `feeds`."""
        names = {each.name for each in module.inputs}
        return {name: array for name, array in inputs.items() if name in names} if self._feeds else inputs

    def _for_large(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if not self._feeds:
            return inputs
        first = self.small(inputs)
        return {**self._taken(self._large, inputs), **{name: first[output] for name, output in self._feeds.items()}}

    def cascade(self, scorer: Any, threshold: float) -> Run:
        """Return a run of the cascade."""

        def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            small, large = self.small(inputs), self.large(inputs)
            certain = scorer(small) >= threshold
            parts: list[tuple[Sequence[int], Mapping[str, Array]]] = [
                (np.flatnonzero(chosen).tolist(), {name: outputs[name][chosen] for name in large})
                for chosen, outputs in ((certain, small), (~certain, large))
                if chosen.any()
            ]
            return joined(parts, row_count(inputs)) if parts else small

        return run

    def costs_ms(self) -> tuple[float, float]:
        """Return processor milliseconds per row of each model, measured alternately on the first inputs."""
        small, large = self._small, self._large
        inputs = next(iter(self.inputs.values()))
        for_small, for_large = self._taken(small, inputs), self._for_large(inputs)
        settings = small.threads, large.threads
        small.threads = large.threads = 1  # only processor time counts
        seconds = interleaved_seconds([lambda: small.run(for_small), lambda: large.run(for_large)], budget=0.2)
        small.threads, large.threads = settings
        rows = max(row_count(inputs), 1)
        return 1000 * seconds[0] / rows, 1000 * seconds[1] / rows


def _threshold(
    evaluate: Evaluate, both: BothModels, scorer: Any, scores: Array, score_large: float, max_drop: float
) -> tuple[float, float]:
    """Return the lowest threshold above which the limit holds for every tried one, and its score."""
    indices = np.unique(np.linspace(0, len(scores), _STEPS + 1).round().astype(int))
    # The highest sends every row to the large model, for which the limit holds by definition.
    chosen = (float("inf"), score_large)
    for index in indices[::-1][1:]:
        threshold = float(scores[index])
        value = evaluated(evaluate, both.cascade(scorer, threshold))
        if relative_drop(score_large, value) > max_drop:
            break
        chosen = (threshold, value)
    return chosen


def read_cascade(path: str | os.PathLike[str]) -> CascadeCalibration:
    """Read a file of `save`. Raises StorageError, or OptionError if it is not a calibration."""
    with storage_errors(path):
        content = Path(path).read_bytes()
    try:
        calibration = CascadeCalibration(**json.loads(content))
        numbers = (calibration.threshold, calibration.accuracy, calibration.small_accuracy)
    except (ValueError, TypeError) as error:
        hint = "`tensorwright calibrate cascade` writes one"
        raise OptionError(f"{path} is not a calibration of a cascade: {error}", hint) from error
    if not all(isinstance(number, int | float) for number in numbers):
        raise OptionError(f"{path} is not a calibration of a cascade: {numbers}", "calibrate again")
    return calibration


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
probabilities; the largest after a softmax, for logits; the value itself, for a model that returns its certainty."""


def score_of(kind: str, output: str) -> Score:
    """Return a function from outputs by name to a score per row, float64 (rows,), higher if the model is more certain.

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


_ROWS = 64


def classification_accuracy(
    module: Module,
    samples: Mapping[str, Array],
    labels: str | None = None,
    output: str | None = None,
    *,
    run: Run | None = None,
) -> tuple[Evaluate, str]:
    """Return a measure: the fraction of rows whose largest output is the right one.

    Args:
        samples: an array of rows for each input, and the labels.
        labels: the array with the right class of each row; None: the class predicted by `module`.
        output: the output whose largest element is the class; None: the only output.
        run: function that computes the outputs; None: the module.

    Returns:
        The measure, and the name of the output.

    Raises:
        OptionError: there is no such output or labels, or their number is not that of the rows.
    """
    names = [each.name for each in module.outputs]
    if output is None and len(names) != 1:
        raise OptionError(f"the model has outputs {names}", "select the one with the class scores: output=")
    scored = output if output is not None else names[0]
    if scored not in names:
        raise OptionError(f"the model has no output {scored!r}", f"its outputs are {', '.join(names)}")
    if labels is not None and labels not in samples:
        raise OptionError(f"the samples hold no labels {labels!r}", f"they hold {', '.join(sorted(samples))}")
    run_model = module.run if run is None else run
    inputs = {name: array for name, array in samples.items() if name != labels}
    rows = row_count(inputs)
    size = module.inputs[0].shape[0] if module.inputs and module.inputs[0].shape else 1
    step = size if isinstance(size, int) else _ROWS
    starts = range(0, rows - rows % step if isinstance(size, int) else rows, step)

    def classes(run: Run) -> Array:
        parts = (run({name: array[start : start + step] for name, array in inputs.items()})[scored] for start in starts)
        return np.array(list(chain.from_iterable(part.reshape(len(part), -1).argmax(axis=1) for part in parts)))

    expected = classes(run_model) if labels is None else np.asarray(samples[labels]).reshape(-1)
    used = len(classes(run_model)) if labels is not None else len(expected)
    if len(expected) < used or (labels is not None and len(expected) != rows):
        raise OptionError(f"{len(expected)} labels for {rows} rows", "give one for each row")

    def evaluate(run: Run) -> float:
        return float((classes(run) == expected[:used]).mean())

    return evaluate, scored
