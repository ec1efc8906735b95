"""`factorize`: matrices and convolutions as products of smaller ones, where that is faster and accurate enough."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
from typing_extensions import Unpack

import targets
from compiler.compression.job import Job, JobOptions, start
from compiler.compression.low_rank.decomposition import Factors, LayerTimer, factor_convolution, factor_matrix, factored
from compiler.compression.model import CompressedModel
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.quantization.precisions import MEASURED, PREDICTED
from compiler.compression.report import LayerChange, Measure
from compiler.compression.samples import Samples
from compiler.errors import AccuracyError, NothingGainedError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.support.accuracy import Evaluate, fewest
from compiler.support.import_arguments import ImportArguments, takes_imports
from compiler.support.interrupts import interruptible
from compiler.support.options import options_of
from compiler.support.progress_bar import automatic, shows_progress

# The search for a rank that is fast enough: these shares of a layer's energy, the largest first.
_ENERGIES = (0.999, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


@interruptible
@shows_progress
@takes_imports
def factorize(
    source: object,
    energy: float = 0.9,
    *,
    speedup: float | None = None,
    minimum_gain: float = 1.1,
    keep: Collection[str] = (),
    decide: str = PREDICTED,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> CompressedModel:
    """Replace layers by the layers of their low-rank factors, each only where it runs faster so.

    Times of both forms of a layer, alone and on one thread, are predicted from the target's description, so that the
    same call gives the same model. Where nothing is known of them, numbers of multiplications stand in for them: of
    data of symbolic size, and of targets other than x86-64.

    Args:
        source, calibration, evaluate, max_drop, target, threads, and how the source is imported: as
            `tensorwright.prune` takes them. Where the limit does not hold, the layers that lost most stay whole.
        energy: the share of the sum of squares of a layer's weights that its rank must keep. Ranks are multiples of
            the machine's vector length.
        speedup: in place of `energy`: the rank is the largest tried that makes a layer this many times faster.
        minimum_gain: a layer is replaced only where it is this many times faster.
        keep: names of layers (as in the report) to leave whole.
        decide: "predicted", or "measured": both forms are compiled and timed alternately, where this machine runs the
            target.

    Raises:
        AccuracyError: the limit does not hold with any layer in factors.
        OptionError: an option is at fault.
        NothingGainedError: no layer is faster in factors.
        UserError: of importing and compiling.
    """
    options = options_of(FactorizationOptions, locals())
    options.check()
    common = options_of(JobOptions, locals())
    return _factorized(start(source, common, ImportOptions.of(imports)), options)


def _factorized(job: Job, options: FactorizationOptions) -> CompressedModel:
    search = _Search(job, options)
    search.run()
    speedup = options.speedup
    if not search.factors:
        raise NothingGainedError(
            f"none of {len(search.layers)} layers is {options.wanted} times faster in factors",
            "ask for less energy=; weights that are not of low rank are better pruned",
        )
    names, after = _within_limit(job, search)
    chosen = {"energy": options.energy} if speedup is None else {"speedup": speedup}
    label = f"factorize {options.energy:.3g}" if speedup is None else f"factorize {speedup:.3g} times faster"
    settings = {"minimum_gain": options.minimum_gain} | chosen
    return job.result(label, search.candidate(names), after, settings, _changes(search, names))


@dataclass
class _Search:
    """Search for the layers that are faster when factorized.

    Attributes:
        factors: of those, by name; `details` says of every layer what was found.
        noise: of those, the weights' signal to what is lost of them, in decibels.
    """

    job: Job
    options: FactorizationOptions
    factors: dict[str, Factors] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers: list[Layer] = find_layers(self.job.model.mod, nodes=self.job.model.nodes).layers
        self._timer = LayerTimer(self.job.target, self.options.decide == MEASURED)

    def run(self) -> None:
        """Find the factors. Raises OptionError if `keep` names something that is not a layer."""
        keep = self.options.keep
        known = [layer.name for layer in self.layers]
        for name in keep:
            if name not in known:
                raise OptionError(f"keep= has {name!r}, which is not a layer", f"the layers are {', '.join(known)}")
        for layer in self.layers:
            if layer.name in keep:
                self.details[layer.name] = "asked for"
            elif (reason := _unsuited(layer)) is not None:
                self.details[layer.name] = reason
            else:
                self.job.report(f"factorize {layer.name}")
                self._try(layer)

    def _try(self, layer: Layer) -> None:
        best, wanted = 0.0, self.options.wanted
        for energy in (self.options.energy,) if self.options.speedup is None else _ENERGIES:
            factors = self._factors(layer, energy)
            fewer = layer.weight.size / factors.multiplications
            # Fewer multiplications never made a layer faster by more than their ratio and a third; where there are
            # not fewer, a gain is noise of the clock.
            promising = fewer > 1 and fewer * 4 / 3 >= wanted
            known = self._timer.gain(layer, factors.weights) if promising else min(fewer, 1.0)
            gain = fewer if known is None else known
            best = max(best, gain)
            if gain >= wanted:
                how = "fewer multiplications" if known is None else "faster"
                self.factors[layer.name] = factors
                self.details[layer.name] = f"{gain:.2f} times {how}"
                self.noise[layer.name] = decibels(*noise_ratio(factors.product, layer.weight))
                return
        self.details[layer.name] = f"{best:.2f} times as fast in factors"

    def _factors(self, layer: Layer, energy: float) -> Factors:
        multiple = self.job.target.machine.lanes("float32")
        if layer.weight.ndim == 2:
            return factor_matrix(layer.weight, energy, multiple)
        return factor_convolution(layer.weight, energy, multiple)

    def candidate(self, names: Collection[str]) -> ImportedModel:
        """The model with these layers in factors."""
        chosen = {name: self.factors[name] for name in names}
        return replace(self.job.model, mod=factored(self.job.model.mod, self.layers, chosen))


def _unsuited(layer: Layer) -> str | None:
    """Reason why a layer has no factors."""
    if layer.weight.ndim > 2 and int(layer.call.attrs.groups) > 1:
        return "it is a grouped convolution"
    if layer.weight.ndim > 2 and layer.product.filters:
        return "a transposed convolution cannot be factorized"
    if not np.isfinite(layer.weight).all():
        return "its weights are not finite"
    return None


def _within_limit(job: Job, search: _Search) -> tuple[list[str], Measure]:
    """(the layers to replace, the measure): all that are faster, but for the worst where the limit asks for it."""
    ranked = sorted(search.factors, key=lambda name: search.noise[name])
    found: dict[int, Measure] = {}

    def holds(whole: int) -> bool:
        job.report(f"measure with {whole} of them whole again" if whole else "measure")
        found[whole] = job.measure(search.candidate(ranked[whole:]))
        return job.holds(found[whole])

    if holds(0):
        return ranked, found[0]
    count = fewest(holds, len(ranked) - 1) if len(ranked) > 1 else None
    if count is None:
        last = found[max(found)]
        assert job.before.score is not None
        raise AccuracyError(
            f"the limit max_drop={job.max_drop} does not hold with any layer in factors: {job.before.score:.6g} before,"
            f" {last.score:.6g} after",
            "ask for more energy=, or allow a larger max_drop",
        )
    return ranked[count:], found[count]


def _changes(search: _Search, names: Collection[str]) -> list[LayerChange]:
    changes = []
    for layer in search.layers:
        size, factors = layer.weight.size, search.factors.get(layer.name)
        if factors is None or layer.name not in names:
            reason = search.details[layer.name] if factors is None else "the limit does not hold with it"
            changes.append(LayerChange(layer.name, "", size, size, f"left whole: {reason}"))
            continue
        shapes = " ".join("x".join(map(str, each.shape)) for each in factors.weights)
        after = sum(each.size for each in factors.weights)
        changes.append(LayerChange(layer.name, shapes, size, after, search.details[layer.name]))
    return changes


# The settings of `factorize`, checked before anything runs.


@dataclass(frozen=True, kw_only=True)
class FactorizationOptions:
    """Options of `factorize`, which documents the fields."""

    energy: float = 0.9
    speedup: float | None = None
    minimum_gain: float = 1.1
    keep: Collection[str] = ()
    decide: str = PREDICTED

    @property
    def wanted(self) -> float:
        """Speedup that a layer must reach."""
        return self.minimum_gain if self.speedup is None else self.speedup

    def check(self) -> None:
        """Raises OptionError for what cannot be done; the names of layers in `keep` are the model's to know."""
        if not 0 < self.energy <= 1:
            raise OptionError(f"energy={self.energy}", "give a share above 0 and up to 1, like 0.95")
        if self.speedup is not None and not self.speedup > 1:
            raise OptionError(f"speedup={self.speedup}", "give a number above 1, like 1.5")
        if not self.minimum_gain >= 1:
            raise OptionError(f"minimum_gain={self.minimum_gain}", "give 1 or more")
        if self.decide not in (PREDICTED, MEASURED):
            raise OptionError(f"decide={self.decide!r}", f"use {PREDICTED!r} or {MEASURED!r}")
