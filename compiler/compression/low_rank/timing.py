"""Whether a layer is faster in factors: by the cost model of the target's machine, or by timing both forms
alternately."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import IRModule

import targets
from compiler.compression.low_rank.rewriting import chain
from compiler.compression.predicted_times import PredictedClock, is_calibrated
from compiler.compression.quantization.layers import Layer
from compiler.driver.compile import compile as compile_model
from compiler.passes.rewriting.matching import Array, shape_of
from compiler.profiling.timing import seconds_in_turns
from compiler.runtime.random_inputs import random_inputs

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


class LayerTimer:
    """Times of layers on one thread; those of equal sizes are cached.

    Args:
        measured: they are timed on this machine; otherwise their times are predicted.
    """

    def __init__(self, target: targets.Target, measured: bool) -> None:
        self._target, self._is_measured = target, measured
        self._predicted = PredictedClock(target)
        self._known: dict[tuple[object, ...], float] = {}

    def gain(self, layer: Layer, weights: Sequence[Array]) -> float | None:
        """How many times faster the factors run; None where that is not known.

        That is data of symbolic size, a target that this machine cannot run when times are measured, and one for which
        none are predicted otherwise.
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
        whole, parts = seconds_in_turns(runs)
        return whole / parts

    def _alone(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> IRModule:
        """A module of the layer alone, its data and result as the caller has them."""
        builder = relax.BlockBuilder()
        data = relax.Var("x", relax.TensorType(shape, "float32"))
        call = relax.Call(layer.call.op, [data, *layer.call.args[1:]], layer.call.attrs, layer.call.ty_args)
        with builder.function("main", [data]):
            with builder.dataflow():
                result: Expr = builder.emit(chain(call, weights, builder.emit) if len(weights) > 1 else call)
                output = builder.emit_output(relax.Tuple([result]))
            builder.emit_func_output(output)
        return builder.get()
