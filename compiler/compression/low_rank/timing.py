"""Whether a layer is faster in factors: both are compiled alone and timed in turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import relax

import targets
from compiler.compression.low_rank.rewriting import chain
from compiler.compression.quantization.layers import Layer
from compiler.compression.timing import seconds_in_turns
from compiler.driver import compile as compile_model
from compiler.passes.matching import Array, shape_of
from compiler.reference import random_inputs
from compiler.runtime import Module


class LayerTimer:
    """Times layers on one thread; remembers those of equal sizes."""

    def __init__(self, target: targets.Target) -> None:
        self._target = target
        self._known: dict[tuple[object, ...], float] = {}

    def gain(self, layer: Layer, weights: Sequence[Array]) -> float | None:
        """How many times faster the factors run here; None where that can not be measured.

        That is a target that this machine can not run, or data of open size.
        """
        shape = shape_of(layer.data)
        if not self._target.fits_this_machine() or shape is None or not all(isinstance(size, int) for size in shape):
            return None
        fixed = tuple(int(size) for size in shape)
        key = (fixed, str(layer.call.attrs), layer.weight.shape, tuple(each.shape for each in weights))
        if key not in self._known:
            self._known[key] = self._measured(layer, fixed, weights)
        return self._known[key]

    def _measured(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> float:
        modules = [self._alone(layer, shape, own) for own in ([layer.weight], weights)]
        inputs = random_inputs(modules[0].inputs)
        runs = [partial(each.run, inputs) for each in modules]
        whole, parts = seconds_in_turns(runs)
        return whole / parts

    def _alone(self, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> Module:
        """A module of the layer alone, its data and result as the caller has them."""
        builder = relax.BlockBuilder()
        data = relax.Var("x", relax.TensorType(shape, "float32"))
        call = relax.Call(layer.call.op, [data, *layer.call.args[1:]], layer.call.attrs, layer.call.ty_args)
        with builder.function("main", [data]):
            with builder.dataflow():
                result: Any = builder.emit(chain(call, weights, builder.emit) if len(weights) > 1 else call)
                output = builder.emit_output(relax.Tuple([result]))
            builder.emit_func_output(output)
        return compile_model(builder.get(), self._target, threads=1)
