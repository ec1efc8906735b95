"""`factorize`: replaces weights by products of smaller ones if that is faster and accurate enough.

Factors of weights.

A matrix is factorized by SVD. A convolution has two forms, and the one with fewer multiplications is used: as a matrix
(filters by everything else), which becomes a convolution of few filters and a 1x1 one (Denton et al.,
arXiv:1404.0736); or by a Tucker decomposition of filters and channels, which becomes a 1x1, a small and a 1x1
convolution (Kim et al., arXiv:1511.06530), with factors from HOSVD.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from tvm import relax
from tvm.ir import IRModule
from typing_extensions import Unpack

import targets
from compiler.compression.job import Job, JobOptions, Samples, start
from compiler.compression.model import CompressedModel
from compiler.compression.predicted_times import PredictedClock, is_calibrated
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.layer_choice import MEASURED, PREDICTED
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.report import LayerChange, Measure
from compiler.driver.compile import compile as compile_model
from compiler.errors import AccuracyError, NothingGainedError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import Array, as_constant, shape_of
from compiler.profiling.timing import interleaved_seconds
from compiler.runtime.random_inputs import random_inputs
from compiler.support.accuracy import Evaluate, fewest
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, check_choices, options_of, takes_imports
from compiler.support.progress_bar import automatic, shows_progress

# Search for a rank that is fast enough: these fractions of a layer's energy, the largest first.
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
    """Replace layers by their low-rank factors, each only if that is faster.

    Times of both forms of a layer, in isolation and on one thread, are predicted from the target's description, so that
    the same call returns the same model. If no prediction is possible (data of symbolic size, targets other than
    x86-64), numbers of multiplications are compared instead.

    Args:
        source, calibration, evaluate, max_drop, target, threads, and the import options: as in `tensorwright.prune`. If
            the limit does not hold, the layers with the largest loss are not replaced.
        energy: the fraction of the sum of squares of a layer's weights that its rank must keep. Ranks are multiples of
            the machine's vector length.
        speedup: instead of `energy`: the rank is the largest tried that makes a layer this many times faster.
        minimum_gain: a layer is replaced only if that makes it this many times faster.
        keep: names of layers (as in the report) that are not replaced.
        decide: "predicted", or "measured": both forms are compiled and timed alternately, if this machine can run the
            target.

    Raises:
        AccuracyError: the limit does not hold with any factorized layer.
        OptionError: an option is invalid.
        NothingGainedError: no layer is faster when factorized.
        UserError: importing or compiling failed.
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
    names, measure = _within_limit(job, search)
    chosen = {"energy": options.energy} if speedup is None else {"speedup": speedup}
    label = f"factorize {options.energy:.3g}" if speedup is None else f"factorize {speedup:.3g} times faster"
    settings = {"minimum_gain": options.minimum_gain} | chosen
    return job.result(label, search.candidate(names), measure, settings, _changes(search, names))


@dataclass
class _Search:
    """Search for the layers that are faster when factorized.

    Attributes:
        factors: factors of these, by name; `details` has the findings for every layer.
        noise: signal-to-noise ratio of the factorized weights in these layers, in decibels.
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
        best, min_gain = 0.0, self.options.wanted
        for energy in (self.options.energy,) if self.options.speedup is None else _ENERGIES:
            factors = self._factors(layer, energy)
            fewer = layer.weight.size / factors.multiplications
            # Fewer multiplications never made a layer faster by more than 4/3 of their ratio; without fewer, a gain is
            # noise of the clock.
            promising = fewer > 1 and fewer * 4 / 3 >= min_gain
            known = self._timer.gain(layer, factors.weights) if promising else min(fewer, 1.0)
            gain = fewer if known is None else known
            best = max(best, gain)
            if gain >= min_gain:
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
        """The model with these layers factorized."""
        chosen = {name: self.factors[name] for name in names}
        return replace(self.job.model, mod=factored(self.job.model.mod, self.layers, chosen))


def _unsuited(layer: Layer) -> str | None:
    """Reason why a layer cannot be factorized, or None."""
    if layer.weight.ndim > 2 and int(layer.call.attrs.groups) > 1:
        return "it is a grouped convolution"
    if layer.weight.ndim > 2 and layer.operator.filters:
        return "a transposed convolution cannot be factorized"
    if not np.isfinite(layer.weight).all():
        return "its weights are not finite"
    return None


def _within_limit(job: Job, search: _Search) -> tuple[list[str], Measure]:
    """(the layers to replace, the measure): all that are faster, without the worst ones if the limit requires that."""
    ranked = sorted(search.factors, key=lambda name: search.noise[name])
    measures: dict[int, Measure] = {}

    def holds(full_count: int) -> bool:
        job.report(f"measure with {full_count} of them whole again" if full_count else "measure")
        measures[full_count] = job.measure(search.candidate(ranked[full_count:]))
        return job.holds(measures[full_count])

    if holds(0):
        return ranked, measures[0]
    count = fewest(holds, len(ranked) - 1) if len(ranked) > 1 else None
    if count is None:
        last = measures[max(measures)]
        assert job.before.score is not None
        raise AccuracyError(
            f"the limit max_drop={job.max_drop} does not hold with any layer in factors: {job.before.score:.6g} before,"
            f" {last.score:.6g} after",
            "ask for more energy=, or allow a larger max_drop",
        )
    return ranked[count:], measures[count]


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
        """Raise OptionError for invalid options; the layer names in `keep` are checked against the model later."""
        if not 0 < self.energy <= 1:
            raise OptionError(f"energy={self.energy}", "give a share above 0 and up to 1, like 0.95")
        if self.speedup is not None and not self.speedup > 1:
            raise OptionError(f"speedup={self.speedup}", "give a number above 1, like 1.5")
        if not self.minimum_gain >= 1:
            raise OptionError(f"minimum_gain={self.minimum_gain}", "give 1 or more")
        check_choices(self, decide=(PREDICTED, MEASURED))


@dataclass(frozen=True, eq=False)
class Factors:
    """The weights of the layers that replace a layer, in order.

    Attributes:
        weights: float32; matrices (in, out), or convolutions (out, in, *kernel) one of which has the full kernel.
        product: their product, in the layer's own shape.
        multiplications: number per output position (with stride 1).
    """

    weights: tuple[Array, ...]
    product: Array
    multiplications: int


def rank_for(singular: Array, energy: float, multiple: int) -> int:
    """The smallest rank that keeps this fraction of the sum of squares, rounded up to whole vectors."""
    cumulative = np.cumsum(singular.astype(np.float64) ** 2)
    if not cumulative[-1]:
        return 1
    rank = int(np.searchsorted(cumulative, energy * cumulative[-1] * (1 - 1e-12)) + 1)
    return min(-(-rank // multiple) * multiple, len(singular))


def factor_matrix(weight: Array, energy: float, multiple: int) -> Factors:
    """(in, out) as (in, rank) times (rank, out)."""
    left, singular, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    rank = rank_for(singular, energy, multiple)
    root = np.sqrt(singular[:rank])
    first, second = left[:, :rank] * root, root[:, None] * right[:rank]
    return _factors([first, second], first @ second, first.size + second.size)


def factor_filters(weight: Array, energy: float, multiple: int) -> Factors:
    """(out, in, *kernel) as `rank` filters and a 1x1 convolution of them."""
    out = weight.shape[0]
    matrix = factor_matrix(weight.reshape(out, -1).T, energy, multiple)
    first, second = matrix.weights
    rank = first.shape[1]
    weights = [first.T.reshape(rank, *weight.shape[1:]), second.T.reshape(out, rank, *_ones(weight))]
    return _factors(weights, matrix.product.T.reshape(weight.shape), matrix.multiplications)


def factor_tucker(weight: Array, energy: float, multiple: int) -> Factors:
    """(out, in, *kernel) as a 1x1 convolution, one between fewer channels and fewer filters, and a 1x1 one.

    Each of the two modes may lose half of the permitted loss: the squared error is at most the sum of both modes'
    losses
    (De Lathauwer et al., 2000, property 10).
    """
    out, channels = weight.shape[:2]
    exact = weight.astype(np.float64).reshape(out, channels, -1)
    share = 1 - (1 - energy) / 2
    filters = _basis(exact.reshape(out, -1), share, multiple)
    inputs = _basis(exact.transpose(1, 0, 2).reshape(channels, -1), share, multiple)
    core = np.einsum("oik,of,ic->fck", exact, filters, inputs, optimize=True)
    product = np.einsum("fck,of,ic->oik", core, filters, inputs, optimize=True).reshape(weight.shape)
    small = core.reshape(*core.shape[:2], *weight.shape[2:])
    weights = [
        inputs.T.reshape(*inputs.T.shape, *_ones(weight)),
        small,
        filters.reshape(*filters.shape, *_ones(weight)),
    ]
    return _factors(weights, product, sum(each.size for each in weights))


def factor_convolution(weight: Array, energy: float, multiple: int) -> Factors:
    """The decomposition with fewer multiplications."""
    ways = [factor_filters(weight, energy, multiple)]
    if any(size > 1 for size in weight.shape[2:]):
        ways.append(factor_tucker(weight, energy, multiple))
    return min(ways, key=lambda way: way.multiplications)


def _basis(matrix: Array, energy: float, multiple: int) -> Array:
    """The leading left singular vectors, (rows, rank)."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    singular = np.sqrt(np.maximum(values[::-1], 0))
    basis: Array = vectors[:, ::-1][:, : rank_for(singular, energy, multiple)]
    return basis


def _ones(weight: Array) -> tuple[int, ...]:
    return (1,) * (weight.ndim - 2)


def _factors(weights: Sequence[Array], product: Array, multiplications: int) -> Factors:
    return Factors(tuple(each.astype(np.float32) for each in weights), product.astype(np.float32), multiplications)


# Replacing layers by their factors.


def factored(mod: IRModule, layers: Sequence[Layer], factors: Mapping[str, Factors]) -> IRModule:
    """`mod` with the layers in `factors`, by name, replaced by their factors."""
    changed = {layer.variable: factors[layer.name] for layer in layers if layer.name in factors}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        return chain(call, changed[variable].weights, emit) if variable in changed else None

    return edit_main(mod, edit)


def chain(call: Call, weights: Sequence[Array], emit: Emit) -> Expr:
    """The call's data through layers with these weights; the one with the kernel has the call's strides and padding."""
    value: Expr = call.args[0]
    is_matmul = call.op.name == "relax.matmul"
    kernel_index = 0 if is_matmul else _with_kernel(call, weights)
    for index, weight in enumerate(weights):
        if is_matmul:
            result = relax.op.matmul(value, as_constant(weight))
        else:
            result = _convolution(call, value, weight, own=index == kernel_index)
        value = result if index == len(weights) - 1 else emit(result)
    return value


def _with_kernel(call: Call, weights: Sequence[Array]) -> int:
    kernel = tuple(int(size) for size in call.args[1].ty.shape)[2:]
    return next(index for index, weight in enumerate(weights) if weight.shape[2:] == kernel)


def _convolution(call: Call, data: Expr, weight: Array, *, own: bool) -> Expr:
    """A convolution, with the attributes of `call` if `own`, otherwise with defaults."""
    operator = getattr(relax.op.nn, call.op.name.rsplit(".", 1)[-1])
    attributes = call.attrs
    layouts = {"data_layout": str(attributes.data_layout), "kernel_layout": str(attributes.kernel_layout)}
    if not own:
        return operator(data, as_constant(weight), **layouts)
    spatial = {name: [int(each) for each in getattr(attributes, name)] for name in ("strides", "padding", "dilation")}
    return operator(data, as_constant(weight), **spatial, **layouts)


# Compares a layer with its factors by the cost model of the target's machine, or by timing both alternately.


class LayerTimer:
    """Times of layers on one thread; cached by sizes.

    Args:
        measured: whether they are timed on this machine; otherwise they are predicted.
    """

    def __init__(self, target: targets.Target, measured: bool) -> None:
        self._target, self._is_measured = target, measured
        self._predicted = PredictedClock(target)
        self._known: dict[tuple[object, ...], float] = {}

    def gain(self, layer: Layer, weights: Sequence[Array]) -> float | None:
        """Speedup of the factors over the original layer; None if unknown.

        It is unknown for data of symbolic size, for a target that this machine cannot run if times are measured, and
        for targets without predictions otherwise.
        """
        shape = shape_of(layer.data)
        known = self._target.fits_this_machine() if self._is_measured else is_calibrated(self._target)
        if not known or shape is None or not all(isinstance(size, int) for size in shape):
            return None
        fixed = tuple(int(size) for size in shape)
        key = (fixed, str(layer.call.attrs), layer.weight.shape, tuple(each.shape for each in weights))
        if key not in self._known:
            self._known[key] = (self._measured if self._is_measured else self._by_machine)(layer, fixed, weights)
        return self._known[key]

    def _by_machine(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> float:
        mods = [self._alone(layer, shape, own) for own in ([layer.weight], weights)]
        whole, parts = (sum(kernel.seconds for kernel in kernels) for kernels in self._predicted(mods))
        return whole / parts

    def _measured(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> float:
        modules = [
            compile_model(self._alone(layer, shape, own), self._target, threads=1) for own in ([layer.weight], weights)
        ]
        inputs = random_inputs(modules[0].inputs)
        runs = [partial(each.run, inputs) for each in modules]
        whole, parts = interleaved_seconds(runs)
        return whole / parts

    def _alone(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> IRModule:
        """A module with only this layer, with its data and result as in the model."""
        builder = relax.BlockBuilder()
        data = relax.Var("x", relax.TensorType(shape, "float32"))
        call = relax.Call(layer.call.op, [data, *layer.call.args[1:]], layer.call.attrs, layer.call.ty_args)
        with builder.function("main", [data]):
            with builder.dataflow():
                result: Expr = builder.emit(chain(call, weights, builder.emit) if len(weights) > 1 else call)
                output = builder.emit_output(relax.Tuple([result]))
            builder.emit_func_output(output)
        return builder.get()
