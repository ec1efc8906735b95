"""How much faster a layer's factors are than the layer, measured alone."""

from __future__ import annotations

import tvm
from tvm import relax

import targets
from compiler.compression.job import processor_seconds
from compiler.compression.low_rank_layers import Factors, factored
from compiler.compression.quantization.layers import Layer
from compiler.driver import compile as compile_model
from compiler.passes.graph import Expr
from compiler.passes.matching import shape_of
from compiler.reference import random_inputs


class LayerTimer:
    """Remembers layers of equal sizes."""

    def __init__(self, target: targets.Target) -> None:
        self._target = target
        self._known: dict[tuple[object, ...], float] = {}

    def gain(self, layer: Layer, factors: Factors) -> float:
        """The time of the layer by that of its factors; by operations where no run can tell."""
        shape = shape_of(layer.data)
        by_operations = factors.whole_operations / factors.operations
        if shape is None or not self._target.fits_this_machine():
            return by_operations
        shape = [size if isinstance(size, int) else 64 for size in shape]
        key = (tuple(shape), str(layer.call.attrs), layer.weight.shape, factors.ranks)
        if key not in self._known:
            self._known[key] = self._seconds(layer, shape, None) / self._seconds(layer, shape, factors)
        return self._known[key]

    def _seconds(self, layer: Layer, shape: list[int], factors: Factors | None) -> float:
        """Of one thread."""
        builder = relax.BlockBuilder()
        data = relax.Var("data", relax.TensorType(shape, "float32"))
        weight = layer.call.args[layer.product.weight]
        with builder.function("main", [data]):
            with builder.dataflow():
                call = relax.Call(layer.call.op, [data, weight], layer.call.attrs, layer.call.ty_args)
                result: Expr = call if factors is None else factored(call, factors, builder.emit)
                output = builder.emit_output(relax.Tuple([builder.emit(result)]))
            builder.emit_func_output(output)
        mod: tvm.IRModule = builder.get()
        module = compile_model(mod, self._target, threads=1)
        inputs = random_inputs(module.inputs)
        return processor_seconds(lambda: module.run(inputs))
