"""Weight sharing: the weights of a layer take few values, and a module's file stores a code of 4 to 8 bits for each.

The values are those of one-dimensional k-means (Lloyd 1982) over the layer's weights, plus zero, so that zeros stay
zero (Han, Mao and Dally 2016). The module expands them at load (the pass store-palettes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from typing_extensions import Unpack

import targets
from compiler.compression.job import Job, JobOptions, Samples, start
from compiler.compression.model import CompressedModel, weight_names
from compiler.compression.pruning.dependencies import find_dependencies
from compiler.compression.pruning.plan import weights_of, with_constants
from compiler.compression.report import LayerChange
from compiler.errors import NothingGainedError, OptionError
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.matching import Array, array_of
from compiler.passes.schedule.store_compressed import MAX_BITS
from compiler.support.accuracy import Evaluate
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, options_of, takes_imports
from compiler.support.progress_bar import automatic, shows_progress

_FEWEST_BITS = 4
_ROUNDS = 30
_FEWEST = 4096  # elements; for fewer, a palette saves too little for its loss


@interruptible
@shows_progress
@takes_imports
def share_weights(
    source: object,
    bits: int = 6,
    *,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> CompressedModel:
    """Give the weights of each layer a palette of 2^bits values. Files get smaller; speed and memory stay the same.

    Args:
        source, calibration, evaluate, max_drop, target, threads, and the import options: as in `tensorwright.prune`.
        bits: 4 to 8; increased up to 8 if the limit does not hold otherwise.

    Raises:
        AccuracyError: the limit does not hold with 8 bits.
        OptionError: `bits` is out of range, or the model has no weights.
        UserError: importing or compiling failed.
    """
    check_bits(bits)
    options = options_of(JobOptions, locals())
    return _shared(start(source, options, ImportOptions.of(imports)), bits)


def _shared(job: Job, bits: int) -> CompressedModel:
    """The model with palettes of `bits` bits, or of the fewest more for which the limit holds."""
    found = find_dependencies(job.model.mod, weight_names(job.model))
    weights = [each for each in weights_of(found) if array_of(each.constant).size >= _FEWEST]
    if not weights:
        raise NothingGainedError(f"the model has no weight of {_FEWEST} numbers or more to share")
    for tried in range(bits, MAX_BITS + 1):
        job.report(f"palettes of {tried} bits")
        new = {each.constant: shared(array_of(each.constant), tried) for each in weights}
        candidate = replace(job.model, mod=with_constants(job.model.mod, new))
        measure = job.measure(candidate)
        if job.holds(measure):
            break
    job.require(measure, "allow a larger max_drop")
    names = (
        each.name or f"weight_{index} {'x'.join(map(str, new[each.constant].shape))}"
        for index, each in enumerate(weights)
    )
    layers = [
        LayerChange(name, f"{tried} bits", 32 * size, tried * size, "sizes in bits")
        for name, size in zip(names, (new[each.constant].size for each in weights), strict=True)
    ]
    notes = () if tried == bits else (f"{bits} bits lost more than the limit allows",)
    return job.result(f"share weights {tried} bits", candidate, measure, {"bits": tried}, layers, notes)


def check_bits(bits: int) -> None:
    """Raise OptionError for code sizes that `share_weights` does not support."""
    if not _FEWEST_BITS <= bits <= MAX_BITS:
        raise OptionError(f"bits={bits}", f"give {_FEWEST_BITS} to {MAX_BITS}")


def shared(values: Array, bits: int) -> Array:
    """`values` with each number replaced by the nearest of 2^bits - 1 centers or by zero."""
    flat = values.ravel().astype(np.float64)
    ordered = np.sort(flat[flat != 0])
    if not ordered.size:
        return values
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # A mix of quantiles and even steps: both the many small weights and the few large ones have centers nearby.
    count = (1 << bits) - 1
    quantiles = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    centers = np.unique((quantiles + np.linspace(ordered[0], ordered[-1], count)) / 2)
    for _ in range(_ROUNDS):
        cuts = np.concatenate([[0], np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2), [ordered.size]])
        counts = np.diff(cuts)
        means = np.diff(sums[cuts]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centers)
        if np.allclose(moved, centers, rtol=1e-6, atol=0):
            break
        centers = np.sort(moved)
    palette = np.unique(np.append(centers, 0.0).astype(np.float32))
    middles = (palette[1:].astype(np.float64) + palette[:-1]) / 2
    nearest = palette[np.searchsorted(middles, flat)]
    return np.where(flat == 0, np.float32(0), nearest).astype(np.float32).reshape(values.shape)
