"""`prune`: removes channels or sets weights of a model to zero, and measures its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from tvm.ir import GenericConst
from typing_extensions import Unpack

import targets
from compiler.compression.job import Job, JobOptions, Samples, start
from compiler.compression.model import CompressedModel, weight_names
from compiler.compression.pruning.dependencies import find_dependencies
from compiler.compression.pruning.layers import find_residual_layers, influences, mean_square, size_of, without_layers
from compiler.compression.pruning.plan import (
    Plan,
    cell_changes,
    mask_changes,
    require_change,
    weights_of,
    with_constants,
)
from compiler.compression.pruning.settings import PruningOptions, note_on_zeros
from compiler.compression.pruning.shrink import shrink
from compiler.compression.quantization.calibration import ModuleWithTaps
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.report import LayerChange
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.matching import Array, array_of
from compiler.support.accuracy import Evaluate
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, options_of, takes_imports
from compiler.support.progress_bar import automatic, shows_progress

_SEARCHED = tuple(step / 20 for step in range(1, 19))  # candidates for amount=None


@interruptible
@shows_progress
@takes_imports
def prune(
    source: object,
    amount: float | None = 0.5,
    *,
    pattern: str = "channels",
    criterion: str = "magnitude",
    scope: str = "layer",
    steps: int = 1,
    finetune: Callable[[Any], object] | None = None,
    loss: Callable[[Any], Any] | None = None,
    rewind: Mapping[str, object] | None = None,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> CompressedModel:
    """Remove the least important channels or heads of a model, or set its least important weights to zero.

    Args:
        source, target, threads, and the import options (shapes, constants, state, capacity, ...): as in
            `tensorwright.compile`.
        amount: the fraction to prune. None: the largest multiple of 5 % for which `max_drop` holds.
        pattern: "channels" and "heads" (of attention) make the graph smaller: all that depends on them, through
            residuals, concatenations and grouped convolutions, is removed with them; "layers" removes residual
            branches.
            "elements" sets single weights to zero, "2:4" all but two of every four operands, "16x1" blocks of 16
            results by 1 operand, which kernels skip if that is faster.
        criterion: "magnitude"; "influence" (of layers: how much they change their input, using `calibration`);
            "gradient" (first order: weight times gradient of `loss`); "second-order": with `loss` its curvature (the
            diagonal of the Fisher matrix), with `calibration` the curvature of each layer's output error, where the
            remaining weights compensate for the removed ones (Optimal Brain Surgeon).
        scope: "layer": each loses `amount`; "global": all together lose `amount`.
        steps: number of times to prune and fine-tune; the amount grows as 1 - (1 - step / steps)^3.
        finetune: for a `torch.nn.Module`: a function that trains the module; pruned weights stay zero meanwhile.
        loss: for a `torch.nn.Module`: a function of the module that returns the loss on some data, or an iterable of
            losses.
        rewind: a state of the module to restore before each fine-tuning (lottery tickets).
        calibration: representative inputs, {input name: array}.
        evaluate: a function that scores a function from inputs to outputs; higher is better. If missing, the mean
        cosine
            similarity with the original outputs on `calibration` is used; without both, accuracy is not measured.
        max_drop: the fraction of that score that may be lost.

    Returns:
        A `CompressedModel` for `tensorwright.compile` or another technique; `report` describes the changes.

    Raises:
        AccuracyError: the limit does not hold.
        OptionError: an option is invalid, or nothing in the model can be pruned like that.
        UserError: importing or compiling failed.
    """
    options = options_of(PruningOptions, locals())
    common = options_of(JobOptions, locals())
    return _pruned(source, options, common, ImportOptions.of(imports))


def _pruned(source: object, options: PruningOptions, common: JobOptions, imports: ImportOptions) -> CompressedModel:
    options.check(has_samples=common.calibration is not None, has_measure=common.evaluate is not None)
    if options.trains and not hasattr(source, "named_parameters"):
        raise OptionError("finetune=, loss= and rewind= are for a torch.nn.Module", f"this is {type(source).__name__}")
    job = start(source, common, imports)
    if options.trains:
        from compiler.compression.pruning.training import prune_trained

        assert options.amount is not None  # as checked
        return prune_trained(job, source, options, options.amount, job.imports)
    work = OneShot(job, options.plan())
    if options.amount is not None:
        result = work.pruned(options.amount)
        job.require(result.report.after, "prune less, give finetune=, or let amount=None find what holds")
        return result
    return _largest(work)


def _largest(work: OneShot) -> CompressedModel:
    """The largest amount for which the limit holds, assuming that pruning less never hurts more."""
    best, low, high = None, 0, len(_SEARCHED)
    while low < high:
        middle = (low + high) // 2
        result = work.pruned(_SEARCHED[middle])
        if work.job.holds(result.report.after):
            best, low = result, middle + 1
        else:
            high = middle
    if best is None:
        raise AccuracyError(
            f"the limit max_drop={work.job.max_drop} does not hold with {_SEARCHED[0]:.0%} pruned",
            "allow a larger max_drop, or fine-tune: finetune=",
        )
    return best


class OneShot:
    """Prunes the same model by different amounts."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self.job, self.plan = job, plan
        self.found = find_dependencies(job.model.mod, weight_names(job.model))
        self.weights = weights_of(self.found)
        self._arrays = {weight.constant: array_of(weight.constant) for weight in self.weights}
        self._hessians: dict[GenericConst, Array] = {}
        if plan.criterion == "second-order":
            job.report("look at the layers' inputs")
            self._hessians = hessians(job, list(self._arrays))

    def pruned(self, amount: float) -> CompressedModel:
        """The model with that fraction pruned, measured."""
        self.job.report(f"prune {amount:.0%}")
        if self.plan.pattern == "layers":
            return self._shallower(amount)
        return self._smaller(amount) if self.plan.kind is None else self._thinner(amount)

    def _shallower(self, amount: float) -> CompressedModel:
        layers = find_residual_layers(self.job.model)
        count = round(amount * len(layers))
        if not count:
            raise OptionError(
                f"amount={amount} of the model's {len(layers)} layers is none",
                "give a larger amount; a layer is what a residual sum adds to its input, of its shape",
            )
        influence = self.plan.criterion == "influence"
        costs = influences(self.job, layers) if influence else [mean_square(layer) for layer in layers]
        order = np.argsort(costs, kind="stable")[:count]
        gone = set(order.tolist())
        mod = without_layers(self.job.model.mod, [layers[index] for index in sorted(gone)])
        candidate = replace(self.job.model, mod=mod)
        measure = self.job.measure(candidate)
        changes = [
            LayerChange(each.name, "removed", size_of(each), 0)
            if index in gone
            else LayerChange(each.name, "", size_of(each), size_of(each))
            for index, each in enumerate(layers)
        ]
        return self.job.result(self.plan.title(amount), candidate, measure, self.plan.settings(amount), changes)

    def _smaller(self, amount: float) -> CompressedModel:
        cells = self.plan.cells(self.found)
        scores = self.found.totals({weight.constant: self._cost(weight.constant) for weight in self.weights})
        removed = self.plan.units(cells, scores, amount, self.job.target.machine.lanes("float32"))
        changes = cell_changes(cells, removed)
        require_change(changes, self.plan, amount)
        candidate = replace(self.job.model, mod=shrink(self.found, removed))
        after = self.job.measure(candidate)
        return self.job.result(self.plan.title(amount), candidate, after, self.plan.settings(amount), changes)

    def _cost(self, constant: GenericConst) -> Array:
        """Cost of removing each element: its square, with second order times the curvature."""
        squares = self._arrays[constant].astype(np.float64) ** 2
        weight = next(each for each in self.weights if each.constant == constant)
        scale = diagonal(self._hessians, constant)
        return squares if scale is None else weight.restored(weight.matrix(squares) * scale)

    def _thinner(self, amount: float) -> CompressedModel:
        kind = self.plan.kind
        assert kind is not None
        amount = kind.amount or amount
        factors = {constant: factor(hessian) for constant, hessian in self._hessians.items()}
        costs = {}
        for weight in self.weights:
            values = self._arrays[weight.constant].astype(np.float64)
            upper = factors.get(weight.constant)
            squares = values**2 if upper is None else weight.restored(saliency(weight.matrix(values), upper))
            costs[weight.constant] = squares
        chosen = self.plan.masks(self.weights, costs, amount)
        changes = mask_changes(self.weights, chosen)
        require_change(changes, self.plan, amount)
        new = {}
        for weight in self.weights:
            values, mask = self._arrays[weight.constant], chosen[weight.constant]
            upper = factors.get(weight.constant)
            new[weight.constant] = np.where(mask, values, np.float32(0))
            if upper is not None:
                new[weight.constant] = weight.restored(compensated(weight.matrix(values), weight.matrix(mask), upper))
        candidate = replace(self.job.model, mod=with_constants(self.job.model.mod, new))
        after = self.job.measure(candidate)
        notes = (note_on_zeros(after, self.job.target),)
        return self.job.result(self.plan.title(amount), candidate, after, self.plan.settings(amount), changes, notes)


# Second-order pruning without training: the effect of removing a weight on its layer's result, with compensation.
#
# With H = X^T X of the layer's inputs X, removing weight w_j costs w_j^2 / [H^-1]_jj when the other weights change to
# compensate (Optimal Brain Surgeon, Hassibi and Stork 1993). The weights of a row are removed from left to right with
# the Cholesky factor of H^-1, each compensated by those to its right (SparseGPT, Frantar and Alistarh 2023).

_ROWS = 4096  # input rows used per sample and layer
_DAMPING = 0.01  # relative to the mean of H's diagonal, as in SparseGPT


def hessians(job: Job, wanted: Sequence[GenericConst]) -> dict[GenericConst, Array]:
    """H (operands, operands; float64) of each weight of a matmul or an ungrouped convolution.

    Operands of a convolution are in the order of `Weight.matrix`: by position in the kernel, then by channel.
    """
    known = set(wanted)
    layers = [
        layer
        for layer in find_layers(job.model.mod).layers
        if (weight := layer.call.args[layer.operator.weight]) in known and _is_plain(layer)
    ]
    tapped = ModuleWithTaps(job.model, job.model.mod, list(dict.fromkeys(layer.data for layer in layers)), job.compile)
    sums: dict[GenericConst, Array] = {}
    for sample in job.samples:
        tensors = tapped.run(sample)[1]
        for layer in layers:
            rows = _operands(layer, tensors[layer.data]).astype(np.float64)
            weight = layer.call.args[layer.operator.weight]
            sums[weight] = sums.get(weight, 0) + rows.T @ rows
    return sums


def _is_plain(layer: Layer) -> bool:
    attrs = layer.call.attrs
    if layer.operator.is_matrix:
        return True
    return int(attrs.groups) == 1 and layer.weight.ndim == 4 and layer.operator.filters == 0


def _operands(layer: Layer, data: Array) -> Array:
    """(rows, operands): the operands of each result of a filter."""
    if layer.operator.is_matrix:
        rows = data.reshape(-1, data.shape[-1])
    else:
        rows = _patches(layer.call.attrs, data, layer.weight.shape[2:])
    if len(rows) > _ROWS:
        rows = rows[np.random.default_rng(0).permutation(len(rows))[:_ROWS]]
    return rows


def _patches(attrs: Any, data: Array, kernel: tuple[int, ...]) -> Array:
    top, left, bottom, right = (int(each) for each in attrs.padding)
    data = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    steps, spread = ([int(each) for each in values] for values in (attrs.strides, attrs.dilation))
    spans = [(size - 1) * gap + 1 for size, gap in zip(kernel, spread, strict=True)]
    windows = sliding_window_view(data, spans, axis=(2, 3))[:, :, :: steps[0], :: steps[1], :: spread[0], :: spread[1]]
    return windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, kernel[0] * kernel[1] * data.shape[1])


def factor(hessian: Array) -> Array:
    """The upper Cholesky factor of the damped inverse."""
    damping = _DAMPING * float(np.mean(np.diag(hessian))) or 1.0
    inverse = np.linalg.inv(hessian + damping * np.eye(len(hessian)))
    return np.linalg.cholesky((inverse + inverse.T) / 2).T


def saliency(matrix: Array, upper: Array) -> Array:
    """Cost of removing each weight of a (results, operands) matrix."""
    result: Array = (matrix / np.diag(upper)) ** 2
    return result


def compensated(matrix: Array, kept: Array, upper: Array) -> Array:
    """`matrix` with zeros where `kept` is False, and the rest adjusted so that the results change least."""
    work = matrix.astype(np.float64)
    for column in range(work.shape[1]):
        error = np.where(kept[:, column], 0.0, work[:, column]) / upper[column, column]
        if error.any():
            work[:, column:] -= np.outer(error, upper[column, column:])
        work[:, column] = np.where(kept[:, column], work[:, column], 0.0)
    return work.astype(matrix.dtype)


def diagonal(hessian: Mapping[GenericConst, Array], constant: GenericConst) -> Array | None:
    """Diagonal of H, or None if there is none."""
    found = hessian.get(constant)
    return None if found is None else np.diag(found)
