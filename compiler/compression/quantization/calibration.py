"""Runs the float model on the caller's data: histograms of inner tensors, which are collected batch by batch without
storing the tensors, the methods that choose ranges from them, and the integer types of those ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.ir import IRModule

import targets
from compiler.compression.job import Sample
from compiler.compression.quantization.affine import Affine, affine_for
from compiler.compression.quantization.edit import edit_main
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.graph import Var
from compiler.runtime import Module
from compiler.support.registry import registers_in

_ACTIVATIONS = ("uint8", "int8")


@dataclass(frozen=True)
class Scheme:
    """Representation of tensors.

    Attributes:
        activations: "uint8" or "int8", one scale and zero point per tensor.
        symmetric_activations: whether the zero point is the middle of the range.
        per_channel: whether weights have one scale per filter instead of one in total; they are int8 with zero point 0.
        integer_only: whether every tensor is quantized, not only inputs of matmuls and convolutions.
        operators: other operators that the target then computes in integers, by name.
    """

    activations: str = "uint8"
    symmetric_activations: bool = False
    per_channel: bool = True
    integer_only: bool = False
    operators: frozenset[str] = frozenset()


def scheme_for(target: targets.Target, activations: str | None = None, per_channel: bool | None = None) -> Scheme:
    """Scheme that suits the target: x86 multiplies unsigned by signed bytes, ARM signed by signed ones; an integer-only
    accelerator needs every tensor quantized. Raises OptionError if `activations` is neither."""
    signed = target.quantized_everywhere or target.machine.architecture in ("aarch64", "armv7")
    if activations is None:
        activations = "int8" if signed else "uint8"
    if activations not in _ACTIVATIONS:
        raise OptionError(f"activations={activations!r}", f"use one of {', '.join(_ACTIVATIONS)}")
    return Scheme(
        activations,
        per_channel=True if per_channel is None else per_channel,
        integer_only=target.quantized_everywhere,
        operators=target.integer_operators,
    )


Array = NDArray[Any]
Compile = Callable[[ImportedModel], Module]


class ModuleWithTaps:
    """A compiled module that also returns tensors from inside `main`."""

    def __init__(self, model: ImportedModel, mod: IRModule, taps: Sequence[Var], compile_model: Compile) -> None:
        """Compile `mod`, a version of `model.mod` in which the variables `taps` are still bound."""
        self._taps = list(taps)
        self._names = [f"tap{index}" for index in range(len(taps))]
        specs = [TensorSpec(name, (), "float32") for name in self._names]
        outputs = [*model.outputs, *(replace(spec, shape=_shape(tap)) for spec, tap in zip(specs, taps, strict=True))]
        tapped = edit_main(mod, taps=self._taps)
        self._module = compile_model(replace(model, mod=tapped, outputs=outputs))

    def run(self, sample: Sample) -> tuple[dict[str, Array], dict[Var, Array]]:
        """(outputs by name, tensors by variable)."""
        outputs = dict(self._module.run(sample))
        inner = {tap: outputs.pop(name) for tap, name in zip(self._taps, self._names, strict=True)}
        return outputs, inner


def _shape(variable: Var) -> tuple[int | str, ...]:
    return tuple(int(size) if str(size).isdigit() else str(size) for size in variable.ty.shape)


def observe(
    tapped: ModuleWithTaps,
    samples: Iterable[Sample],
    sites: Iterable[Var],
    channels: Mapping[Var, int],
    look: Callable[[Mapping[Var, Array]], object],
) -> tuple[dict[Var, Statistics], list[dict[str, Array]]]:
    """(statistics of the tensors over all samples, the outputs of each sample); inner tensors are not stored.

    Args:
        sites: tapped variables to observe.
        channels: the channel axis of those variables for which it matters.
        look: called with the tensors of each sample.
    """
    seen = {variable: Statistics(channels.get(variable)) for variable in sites}
    outputs = []
    for sample in samples:
        result, tensors = tapped.run(sample)
        outputs.append(result)
        for variable, statistics in seen.items():
            statistics.add(tensors[variable])
        look(tensors)
    return seen, outputs


BINS = 8192


class Histogram:
    """Counts of values in `BINS` equal bins over [-reach, reach], with the exact extremes.

    `reach` is a power of two and doubles when a value is outside; pairs of bins are then merged, so earlier values are
    not needed again. At least a quarter of the bins covers the values on the side that reaches further.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 0.0
        self.low = np.inf
        self.high = -np.inf

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.reach / BINS

    @property
    def centers(self) -> Array:
        """The center of each bin."""
        return (np.arange(BINS) - BINS / 2 + 0.5) * self.width

    def add(self, values: Array) -> None:
        """Count the finite values of a float tensor."""
        flat = values.ravel()
        if not np.isfinite(flat).all():
            flat = flat[np.isfinite(flat)]
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach_to(max(abs(low), abs(high)))
        bins_of = (flat * np.float32(BINS / (2 * self.reach)) + np.float32(BINS / 2)).astype(np.int32)
        self.counts += np.bincount(np.clip(bins_of, 0, BINS - 1), minlength=BINS)

    def _reach_to(self, magnitude: float) -> None:
        if not self.reach:
            self.reach = float(2.0 ** np.ceil(np.log2(max(magnitude, 2.0**-100))))
        while self.reach < magnitude:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2

    def share_outside(self, low: float, high: float) -> float:
        """The fraction of values below `low` or above `high`, to the precision of a bin."""
        if not self.total:
            return 0.0
        half = self.width / 2
        outside = (self.centers < low - half) | (self.centers > high + half)
        return float(self.counts[outside].sum() / self.total)


# Calibration statistics of a tensor.


class Statistics:
    """Statistics of one tensor: its histogram, and the mean and the largest magnitude of each channel.

    Args:
        axis: the channel axis; None if channels do not matter.

    Attributes:
        is_finite: True if all observed values are; the histogram counts only finite values.
    """

    def __init__(self, axis: int | None) -> None:
        self.histogram = Histogram()
        self.is_finite = True
        self._axis = axis
        self._sums: Array = np.zeros(0)
        self._count = 0
        self.largest: Array = np.zeros(0, np.float32)

    @property
    def means(self) -> Array:
        """float64, one per channel."""
        return self._sums / max(self._count, 1)

    def add(self, values: Array) -> None:
        """Add a tensor."""
        self.histogram.add(values)
        self.is_finite = self.is_finite and bool(np.isfinite(values).all())
        if self._axis is None or not values.size:
            return
        others = tuple(axis for axis in range(values.ndim) if axis != self._axis)
        sums = values.sum(axis=others, dtype=np.float64)
        magnitudes = np.abs(values).max(axis=others)
        self._sums = sums if not self._count else self._sums + sums
        self.largest = magnitudes if not self._count else np.maximum(self.largest, magnitudes)
        self._count += values.size // values.shape[self._axis]


# Returns the range to represent exactly, for a tensor with that histogram; values outside are clipped.
Calibrator = Callable[[Histogram, Scheme], tuple[float, float]]

_CALIBRATORS: dict[str, Calibrator] = {}
calibrator = registers_in(_CALIBRATORS)


def calibrators() -> list[str]:
    """The names of all methods."""
    return sorted(_CALIBRATORS)


def get_calibrator(name: str) -> Calibrator:
    """The method `name`. Raises OptionError that lists the methods."""
    if name not in _CALIBRATORS:
        raise OptionError(f"no calibration method is named {name!r}", f"use one of {', '.join(calibrators())}")
    return _CALIBRATORS[name]


def parameters_of(histogram: Histogram, method: Calibrator, scheme: Scheme) -> Affine:
    """Scale and zero point for a tensor with that histogram."""
    if not histogram.total:
        return affine_for(0.0, 0.0, scheme.activations, symmetric=scheme.symmetric_activations)
    low, high = method(histogram, scheme)
    return affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)


@calibrator("min-max")
def min_max(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The extremes themselves."""
    return histogram.low, histogram.high


# percentile: the few values farthest from the rest are clipped.

# Fraction of all values; half of the rest is clipped at either end. The default of ONNX Runtime's calibrator.
KEPT = 0.99999


@calibrator("percentile")
def percentile(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The range that covers `KEPT` of the values, to the precision of a bin."""
    share = np.cumsum(histogram.counts) / histogram.total
    tail = (1 - KEPT) / 2
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1 - tail, side="left"))
    half = histogram.width / 2
    low = max(histogram.low, float(histogram.centers[first]) - half)
    return low, min(histogram.high, float(histogram.centers[min(last, len(share) - 1)]) + half)


# mse: the range with the smallest expected squared error of rounding and clipping together.

_COARSE = np.linspace(0.1, 1.0, 19)
_FINE = np.linspace(-0.05, 0.05, 11)


@calibrator("mse")
def squared_error(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """Both ends are shrunk, first together, then each separately."""
    seen = histogram.counts > 0
    values = np.clip(histogram.centers[seen], histogram.low, histogram.high)
    weights = histogram.counts[seen] / histogram.total

    def error(low_share: float, high_share: float) -> float:
        return _error(values, weights, histogram.low * low_share, histogram.high * high_share, scheme)

    best = min(float(share) for share in _COARSE[np.argmin([error(s, s) for s in _COARSE])][None])
    low = high = best
    for _ in range(2):
        low = _best(lambda share, fixed=high: error(share, fixed), low)
        high = _best(lambda share, fixed=low: error(fixed, share), high)
    return histogram.low * low, histogram.high * high


def _best(error: object, start: float) -> float:
    """The fraction near `start`, or anywhere on the coarse grid, with the smallest error; ties go to the larger one."""
    assert callable(error)
    shares = np.unique(np.clip(np.concatenate([_COARSE, start + _FINE]), 0.02, 1.0))[::-1]
    return float(shares[int(np.argmin([error(float(share)) for share in shares]))])


def _error(values: Array, weights: Array, low: float, high: float, scheme: Scheme) -> float:
    affine = affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)
    return float((weights * (affine.round_trip(values) - values) ** 2).sum())


# entropy: the range that loses the least information, by the Kullback-Leibler divergence.
#
# Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017; for ranges that are not symmetric both ends shrink together.

_SHARES = np.linspace(0.1, 1.0, 91)
# Bins are this many times finer than the levels; finer ones have too few values to be a distribution.
_BINS_PER_LEVEL = 8


@calibrator("entropy")
def entropy(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The candidate range with the smallest divergence of the clipped values from the original ones."""
    divergences = [
        _divergence(histogram, histogram.low * float(share), histogram.high * float(share), scheme) for share in _SHARES
    ]
    share = float(_SHARES[int(np.argmin(divergences))])
    return histogram.low * share, histogram.high * share


def _divergence(histogram: Histogram, low: float, high: float, scheme: Scheme) -> float:
    """Divergence of the quantized values from the values clipped to the range."""
    affine = affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)
    start, end = affine.limits
    info = np.iinfo(scheme.activations)
    levels = int(info.max) - int(info.min) + 1
    bins = levels * _BINS_PER_LEVEL
    centers = histogram.centers
    inside = (centers >= start - affine.scale / 2) & (centers <= end + affine.scale / 2)
    bins_of = np.clip(((centers - start) / affine.scale + 0.5) * _BINS_PER_LEVEL, 0, bins - 1).astype(np.int64)
    counts = histogram.counts.astype(np.float64)
    kept = np.bincount(bins_of[inside], counts[inside], minlength=bins)
    reference = np.bincount(bins_of, counts, minlength=bins)
    return _kullback_leibler(reference, _spread(kept, levels))


def _spread(counts: Array, levels: int) -> Array:
    """Each level's count, distributed equally over its nonempty bins."""
    grouped = counts.reshape(levels, -1)
    occupied = grouped > 0
    share = grouped.sum(axis=1, keepdims=True) / np.maximum(occupied.sum(axis=1, keepdims=True), 1)
    return (occupied * share).reshape(-1)


def _kullback_leibler(reference: Array, candidate: Array) -> float:
    """sum of p log(p / q), with a small value for q where q is 0 but p is not."""
    p = reference / reference.sum()
    q = candidate / max(float(candidate.sum()), 1.0)
    present = p > 0
    return float((p[present] * np.log(p[present] / np.maximum(q[present], 1e-9))).sum())
