"""The accuracy of a classifier on arrays of rows, as calibrations take it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np

from compiler.errors import OptionError
from compiler.runtime import Module
from compiler.serving.request import Array
from compiler.serving.rows import row_count
from compiler.support.accuracy import Evaluate, Run

_ROWS = 64


def classification_accuracy(
    module: Module,
    samples: Mapping[str, Array],
    labels: str | None = None,
    output: str | None = None,
    *,
    run: Run | None = None,
) -> tuple[Evaluate, str]:
    """A measure: the share of rows whose largest output is the right one.

    Args:
        samples: an array of rows for each input, and the labels.
        labels: the array that holds the right class of each row; None: the class that `module` gives is the right one.
        output: whose largest element is the class; None: the only output.
        run: what gives the outputs; None: the module.

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
    whole = module.run if run is None else run
    inputs = {name: array for name, array in samples.items() if name != labels}
    rows = row_count(inputs)
    size = module.inputs[0].shape[0] if module.inputs and module.inputs[0].shape else 1
    step = size if isinstance(size, int) else _ROWS
    starts = range(0, rows - rows % step if isinstance(size, int) else rows, step)

    def classes(run: Run) -> Array:
        parts = (run({name: array[start : start + step] for name, array in inputs.items()})[scored] for start in starts)
        return np.array(list(chain.from_iterable(part.reshape(len(part), -1).argmax(axis=1) for part in parts)))

    expected = classes(whole) if labels is None else np.asarray(samples[labels]).reshape(-1)
    used = len(classes(whole)) if labels is not None else len(expected)
    if len(expected) < used or (labels is not None and len(expected) != rows):
        raise OptionError(f"{len(expected)} labels for {rows} rows", "give one for each row")

    def evaluate(run: Run) -> float:
        return float((classes(run) == expected[:used]).mean())

    return evaluate, scored
