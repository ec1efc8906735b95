"""`factorize`: matrices and convolutions as products of smaller ones, where that is faster and accurate enough."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import targets
from compiler.compression.low_rank.decomposition import Factors, factor_convolution, factor_matrix
from compiler.compression.low_rank.rewriting import factored
from compiler.compression.low_rank.timing import gain
from compiler.compression.outcome import CompressedModel, CompressionReport, LayerOutcome
from compiler.compression.quantization.accuracy import Evaluate, fewest
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.trial import Progress, Sample, Trial, begin, seconds
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import Constants, Shapes

# The search for a rank that is fast enough: these shares of a layer's energy, the largest first.
_ENERGIES = (0.999, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


def factorize(
    source: object,
    calibration: Iterable[Sample] | None = None,
    *,
    energy: float = 0.95,
    speedup: float | None = None,
    minimum_gain: float = 1.05,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    keep: Collection[str] = (),
    target: str | targets.Target = "host",
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Replace layers by the layers of their low-rank factors, each only where it runs faster so.

    Both forms of a layer are compiled for the target and timed in turns. For a target that this machine can not run,
    and for data of open size, numbers of multiplications stand in for times.

    Args:
        source, shapes, constants, example_inputs, dynamic_shapes, target, threads: as `compiler.compile` takes them.
        calibration: inputs as the model will meet them; needed without `evaluate`.
        energy: the share of the sum of squares of a layer's weights that its rank must keep.
        speedup: in place of `energy`: the rank is the largest that makes a layer this many times faster.
        minimum_gain: a layer is replaced only where it is this many times faster.
        evaluate, max_drop: as `compiler.quantize` takes them. Where the limit does not hold, the layers that lost
            most stay whole.
        keep: names of layers (as in the report) to leave whole.

    Raises:
        AccuracyError: no layer is faster in factors, or the limit does not hold with any of them.
        OptionError: an option is at fault.
        UserError: of importing and compiling.
    """
    _check(energy, speedup, minimum_gain)
    trial = begin(
        source,
        calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        target=target,
        shapes=shapes,
        constants=constants,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        threads=threads,
        progress=progress,
    )
    search = _Search(trial, energy, speedup, minimum_gain)
    search.run(keep)
    if not search.factors:
        raise AccuracyError(
            f"none of {len(search.layers)} layers is {speedup or minimum_gain} times faster in factors",
            "ask for less energy=, or leave the model as it is",
        )
    names, after = _within_limit(trial, search)
    candidate = search.candidate(names)
    return CompressedModel(**vars(candidate), name=trial.name, report=_report(trial, search, names, after, candidate))


def _check(energy: float, speedup: float | None, minimum_gain: float) -> None:
    if not 0 < energy <= 1:
        raise OptionError(f"energy={energy}", "give a share above 0 and up to 1, like 0.95")
    if speedup is not None and speedup <= 1:
        raise OptionError(f"speedup={speedup}", "give a number above 1, like 1.5")
    if minimum_gain < 1:
        raise OptionError(f"minimum_gain={minimum_gain}", "give 1 or more")


@dataclass
class _Search:
    """Which layers are faster in factors.

    Attributes:
        factors: of those, by name; `details` says of every layer what was found.
    """

    trial: Trial
    energy: float
    speedup: float | None
    minimum_gain: float
    factors: dict[str, Factors] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers: list[Layer] = find_layers(self.trial.model.mod).layers

    def run(self, keep: Collection[str]) -> None:
        known = [layer.name for layer in self.layers]
        for name in keep:
            if name not in known:
                raise OptionError(f"keep= has {name!r}, which is no layer", f"the layers are {', '.join(known)}")
        for layer in self.layers:
            if layer.name in keep:
                self.details[layer.name] = "left whole: asked for"
            elif (reason := _unsuited(layer)) is not None:
                self.details[layer.name] = f"left whole: {reason}"
            else:
                self.trial.report(f"factor {layer.name}")
                self._try(layer)

    def _try(self, layer: Layer) -> None:
        wanted = self.minimum_gain if self.speedup is None else self.speedup
        best = 0.0
        for energy in (self.energy,) if self.speedup is None else _ENERGIES:
            factors = self._factors(layer, energy)
            fewer = layer.weight.size / factors.multiplications
            # Fewer multiplications never made a layer faster by more than their ratio and a third.
            measured = gain(self.trial, layer, factors.weights) if fewer * 4 / 3 >= wanted else fewer
            best = max(best, fewer if measured is None else measured)
            if best >= wanted:
                how = "fewer multiplications" if measured is None else "faster"
                shapes = " ".join("x".join(map(str, each.shape)) for each in factors.weights)
                self.factors[layer.name] = factors
                self.details[layer.name] = f"{shapes}, {best:.2f} times {how}"
                self.noise[layer.name] = decibels(*noise_ratio(factors.product, layer.weight))
                return
        self.details[layer.name] = f"left whole: {best:.2f} times as fast in factors"

    def _factors(self, layer: Layer, energy: float) -> Factors:
        multiple = self.trial.target.machine.lanes("float32")
        factor = factor_matrix if layer.weight.ndim == 2 else factor_convolution
        return factor(layer.weight, energy, multiple)

    def candidate(self, names: Collection[str]) -> ImportedModel:
        """The model with these layers in factors."""
        chosen = {name: self.factors[name] for name in names}
        return replace(self.trial.model, mod=factored(self.trial.model.mod, self.layers, chosen))


def _unsuited(layer: Layer) -> str | None:
    """Why a layer has no factors."""
    if layer.weight.ndim > 2 and int(layer.call.attrs.groups) > 1:
        return "its filters see their own channels alone"
    if not np.isfinite(layer.weight).all():
        return "its weights are not finite"
    return None


def _within_limit(trial: Trial, search: _Search) -> tuple[list[str], float]:
    """(the layers to replace, the score): all that are faster, but for the worst where the limit asks for it."""
    ranked = sorted(search.factors, key=lambda name: search.noise[name])
    scores: dict[int, float] = {}

    def holds(count: int) -> bool:
        trial.report(f"evaluate with {count} layer(s) whole again" if count else "evaluate")
        scores[count] = trial.score(search.candidate(ranked[count:]))
        return trial.holds(scores[count])

    if holds(0):
        return ranked, scores[0]
    count = fewest(holds, len(ranked) - 1) if len(ranked) > 1 else None
    if count is None:
        raise trial.refuse("with any layer in factors")
    return ranked[count:], scores[count]


def _report(
    trial: Trial, search: _Search, names: Collection[str], after: float, candidate: ImportedModel
) -> CompressionReport:
    trial.report("report")
    module = trial.compiled(candidate)
    here = trial.target.fits_this_machine()
    limit = "left whole: the limit does not hold with it"
    dropped = set(search.factors) - set(names)
    outcomes = [
        LayerOutcome(
            layer.name,
            layer.name in names,
            limit if layer.name in dropped else search.details[layer.name],
            search.noise.get(layer.name) if layer.name in names else None,
        )
        for layer in search.layers
    ]
    return CompressionReport(
        technique="low rank",
        target=trial.target.name,
        before=trial.before,
        after=after,
        drop=trial.drop(after),
        max_drop=trial.max_drop,
        evaluations=trial.evaluations,
        bytes_before=sum(each.nbytes for each in trial.module.manifest.parameters),
        bytes_after=sum(each.nbytes for each in module.manifest.parameters),
        seconds_before=seconds(trial.module, trial.sample) if here else None,
        seconds_after=seconds(module, trial.sample) if here else None,
        layers=tuple(outcomes),
    )
