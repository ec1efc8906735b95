"""Whether a layer is faster in factors: both are compiled alone and timed in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from compiler.compression.low_rank.rewriting import chain
from compiler.compression.quantization.layers import Layer
from compiler.compression.trial import Trial, seconds
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.matching import Array, shape_of
from compiler.runtime import Module

_TURNS = 3


def gain(trial: Trial, layer: Layer, weights: Sequence[Array]) -> float | None:
    """How many times faster the factors run here; None where that can not be measured.

    That is a target that this machine can not run, or data of open size.
    """
    shape = shape_of(layer.data)
    if not trial.target.fits_this_machine() or shape is None or not all(isinstance(size, int) for size in shape):
        return None
    fixed = tuple(int(size) for size in shape)
    modules = [_alone(trial, layer, fixed, own) for own in ([layer.weight], weights)]
    sample = {"x": np.random.default_rng(0).standard_normal(fixed).astype(np.float32)}
    times = [[seconds(module, sample) for module in modules] for _ in range(_TURNS)]
    whole, parts = (float(np.median(each)) for each in zip(*times, strict=True))
    return whole / parts


def _alone(trial: Trial, layer: Layer, shape: tuple[int, ...], weights: Sequence[Array]) -> Module:
    """A module of the layer alone, its data and result as the caller has them."""
    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType(shape, "float32"))
    call = relax.Call(layer.call.op, [data, *layer.call.args[1:]], layer.call.attrs, layer.call.ty_args)
    with builder.function("main", [data]):
        with builder.dataflow():
            result: Any = builder.emit(chain(call, weights, builder.emit) if len(weights) > 1 else call)
            output = builder.emit_output(relax.Tuple([result]))
        builder.emit_func_output(output)
    spec = TensorSpec("y", tuple(int(size) for size in result.ty.shape), "float32")
    model = ImportedModel(builder.get(), [TensorSpec("x", shape, "float32")], [spec])
    from compiler.driver import compile as compile_model

    return compile_model(model, trial.target, threads=trial.threads)
