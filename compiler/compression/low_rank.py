"""Low-rank factorization: a product becomes two or three smaller ones, where those are measured to be faster.

x @ W         => (x @ U) @ V                          truncated singular values
conv(x, W)    => conv1x1(conv(conv1x1(x, A), core), B)   Tucker-2 over the channels (Kim et al. 2016)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import targets
from compiler.compression.job import IMPORT_OPTIONS, Job, Samples, start
from compiler.compression.low_rank_layers import Factors, factors_of, with_factors
from compiler.compression.low_rank_timing import LayerTimer
from compiler.compression.model import CompressedModel
from compiler.compression.quantization.accuracy import Evaluate
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.report import LayerChange
from compiler.errors import OptionError
from compiler.frontends.source import Constants, Shapes
from compiler.passes.graph import Var

_STRICTER = 0.5  # of the energy that is lost, when the limit does not hold
_TRIES = 5


def factorize(
    source: object,
    energy: float = 0.9,
    *,
    speedup: float = 1.1,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompressedModel:
    """Replace matrix products and convolutions by products of low rank.

    Args:
        source, calibration, evaluate, max_drop, target, shapes, constants, example_inputs, dynamic_shapes, threads: as
            `compiler.prune` takes them.
        energy: the share of the squared singular values that the rank keeps; nearer to 1 where the limit does not hold.
            Ranks are multiples of the machine's vector length.
        speedup: how many times faster than the whole layer its factors must be, both measured alone on this machine
            (in processor time); other layers stay as they are. Targets that are not this machine are judged by the
            number of operations.

    Raises:
        AccuracyError: the limit does not hold.
        OptionError: an option is at fault, or no layer is faster when factorized.
        UserError: of importing and compiling.
    """
    if not 0 < energy < 1 or speedup < 1:
        raise OptionError(f"energy={energy}, speedup={speedup}", "0 < energy < 1 and speedup >= 1")
    given = (shapes, constants, example_inputs, dynamic_shapes)
    job = start(
        source,
        target=target,
        threads=threads,
        calibration=calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        progress=progress,
        options={name: value for name, value in zip(IMPORT_OPTIONS, given, strict=True) if value is not None},
    )
    layers = find_layers(job.model.mod).layers
    timer = LayerTimer(job.target)
    for attempt in range(_TRIES):
        chosen, changes = _choose(job, layers, energy, speedup, timer)
        if not chosen:
            raise OptionError(
                f"no layer is {speedup} times faster at a rank that keeps {energy:.3%} of its energy",
                "the weights are not of low rank: prune the model, or train it to be",
            )
        candidate = replace(job.model, mod=with_factors(job.model.mod, chosen))
        after = job.measure(candidate)
        if job.holds(after) or attempt + 1 == _TRIES:
            break
        energy = 1 - (1 - energy) * _STRICTER
    job.require(after, "allow a larger max_drop")
    settings = {"energy": energy, "speedup": speedup}
    return job.result(f"factorize {energy:.3g}", candidate, after, settings, changes)


def _choose(
    job: Job, layers: Sequence[Layer], energy: float, speedup: float, timer: LayerTimer
) -> tuple[dict[Var, Factors], list[LayerChange]]:
    """(factors of the layers that get faster, what became of each layer)"""
    chosen, changes = {}, []
    for layer in layers:
        job.report(f"factorize {layer.name}")
        factors = factors_of(layer, energy, job.target.machine.lanes("float32"))
        size = layer.weight.size
        if factors is None:
            changes.append(LayerChange(layer.name, "", size, size, "grouped, tiny, or not of two dimensions"))
            continue
        if factors.operations * speedup > factors.whole_operations:
            reason = f"rank {factors.ranks} takes {factors.operations / factors.whole_operations:.0%} of the operations"
            changes.append(LayerChange(layer.name, "", size, size, reason))
            continue
        gain = timer.gain(layer, factors)
        if gain < speedup:
            changes.append(LayerChange(layer.name, "", size, size, f"rank {factors.ranks} is {gain:.2f} times as fast"))
            continue
        chosen[layer.variable] = factors
        note = f"{gain:.2f} times as fast"
        changes.append(LayerChange(layer.name, f"rank {factors.ranks}", size, factors.size, note))
    return chosen, changes
