"""Time of each layer's kernel in float and in integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.compression.predicted_times import KernelClock, KernelTime
from compiler.compression.quantization.affine import Affine, QuantizedWeight
from compiler.compression.quantization.edit import with_operands
from compiler.compression.quantization.insertion import dequantized_weight
from compiler.compression.quantization.layers import Layer
from compiler.passes.rewriting.matching import as_constant, static_shape
from compiler.runtime.random_inputs import MAX_REFERENCE_BYTES
from schedules.ir.tvm_types import Expr

_PROBE = 1 << 18  # elements of a tensor whose conversion time is scaled to other sizes
_PRODUCTS = ("convolution", "matmul")
# The most bytes of the layers' data in one module.
_MAX_BYTES = MAX_REFERENCE_BYTES // 4


@dataclass(frozen=True)
class LayerTime:
    """Seconds per run; `spread` is the relative variation of measurements, 0 for predictions."""

    floats: float
    integers: float
    spread: float = 0.0


class LayerTimes:
    """Times layers, equal sizes only once: one module holds them all in float, another in integers. `clock`: returns
    the times of a module's kernels."""

    def __init__(self, clock: KernelClock, activations: str) -> None:
        self._clock = clock
        self._affine = Affine(activations, 1 / 32, 128 if activations == "uint8" else 0)
        self._conversion: float | None = None

    def measure(self, layers: Sequence[Layer], weights: Callable[[Layer], QuantizedWeight]) -> dict[str, LayerTime]:
        """Times by the layer's name, without layers whose data has no fixed size."""
        keys = {layer.name: key for layer in layers if (key := _key(layer)) is not None}
        examples = list({keys[layer.name]: layer for layer in layers if layer.name in keys}.values())
        times: dict[object, LayerTime] = {}
        for batch in _batches(examples):
            for layer, time in zip(batch, self._times(batch, weights), strict=True):
                times[keys[layer.name]] = time
        return {name: times[key] for name, key in keys.items()}

    def conversion(self, elements: int) -> float:
        """Seconds to quantize a float tensor."""
        if self._conversion is None:
            data = relax.Var("x", relax.TensorType((_PROBE,), "float32"))
            mod = _module([data], lambda emit: [emit(self._quantized(data))])
            self._conversion = sum(kernel.seconds for kernel in self._clock([mod])[0]) / _PROBE
        return self._conversion * elements

    def _quantized(self, data: Expr) -> Expr:
        return relax.op.quantize(data, *self._parameters(), -1, self._affine.dtype)

    def _parameters(self) -> tuple[Expr, Expr]:
        """The scale and the zero point."""
        affine = self._affine
        return as_constant(np.asarray(affine.scale, np.float32)), as_constant(np.asarray(affine.zero, affine.dtype))

    def _in_integers(self, weights: Callable[[Layer], QuantizedWeight]) -> Callable[..., Any]:
        def make(layer: Layer, data: Expr, emit: Callable[[Any], Any]) -> Expr:
            product = layer.operator
            wide = emit(relax.op.dequantize(data, *self._parameters(), -1, "float32"))
            weight = emit(dequantized_weight(weights(layer)))
            return self._quantized(emit(with_operands(layer.call, {product.data: wide, product.weight: weight})))

        return make

    def _times(self, layers: Sequence[Layer], weights: Callable[[Layer], QuantizedWeight]) -> list[LayerTime]:
        """Times of the layers, in float in one module and in integers in another."""
        in_float = _layers(layers, lambda layer, data, emit: with_operands(layer.call, {0: data}), "float32")
        floats, integers = self._clock([in_float, _layers(layers, self._in_integers(weights), self._affine.dtype)])
        pair = [[kernel for kernel in kernels if kernel.kind in _PRODUCTS] for kernels in (floats, integers)]
        # Kernels run in graph order; additional kernels pack data and unpack results.
        if all(len(kernels) == len(layers) for kernels in pair):
            return [_time([one], [other]) for one, other in zip(*pair, strict=True)]
        if len(layers) == 1:
            return [_time(*pair)]
        return [time for layer in layers for time in self._times([layer], weights)]


def _time(floats: Sequence[KernelTime], integers: Sequence[KernelTime]) -> LayerTime:
    spread = max((kernel.spread for kernel in (*floats, *integers)), default=0.0)
    return LayerTime(sum(each.seconds for each in floats), sum(each.seconds for each in integers), spread)


def _layers(layers: Sequence[Layer], make: Callable[..., Any], dtype: str) -> IRModule:
    """A module of independent layers; `make` builds each from the layer, its data and an emit function."""
    data = [
        relax.Var(f"x{index}", relax.TensorType(static_shape(layer.data), dtype)) for index, layer in enumerate(layers)
    ]
    return _module(data, lambda emit: [emit(make(layer, own, emit)) for layer, own in zip(layers, data, strict=True)])


def _module(data: Sequence[Expr], results: Callable[[Callable[[Any], Any]], list[Any]]) -> IRModule:
    """A module with the inputs `data`; `results` builds its outputs with an emit function."""
    builder = relax.BlockBuilder()
    with builder.function("main", list(data)):
        with builder.dataflow():
            output = builder.emit_output(relax.Tuple(results(builder.emit)))
        builder.emit_func_output(output)
    return builder.get()


def _key(layer: Layer) -> object | None:
    """Equal for layers that take the same time; zeros count, since kernels may skip them."""
    shape = static_shape(layer.data)
    if shape is None:
        return None
    zeros = round(float(np.mean(layer.weight == 0)), 1)
    return (shape, str(layer.call.op), str(layer.call.attrs), layer.weight.shape, zeros)


def _batches(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in groups whose data fits in memory."""
    batches: list[list[Layer]] = []
    room = 0
    for layer in layers:
        size = 8 * int(np.prod(static_shape(layer.data) or ()))
        if size > room:
            batches.append([])
            room = _MAX_BYTES
        batches[-1].append(layer)
        room -= size
    return batches
