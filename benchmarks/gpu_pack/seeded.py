"""Nets with weights generated from seeds, and batch norms that fold into them as powers of two: a compiled weight is
still the generator's integers times a power of two, in any order of axes and any precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.gpu_pack.generator import seed_of, weights
from benchmarks.gpu_pack.nets import exponent_of, seed_parameters

Array = np.ndarray


@dataclass(frozen=True)
class Weight:
    """Generated weights (`generator.weights`) with a shape."""

    seed: int
    row: int
    shape: tuple[int, ...]

    def values(self) -> Array:
        """int8, in their shape."""
        return weights(self.seed, int(np.prod(self.shape)), self.row).reshape(self.shape)


def seed_torch(module: nn.Module, name: str, batch: tuple[torch.Tensor, ...]) -> list[Weight]:
    """Generate weights for a module, and batch norms that scale their input by a power of two."""
    seeded = seed_parameters(module, name)
    module.eval()
    hooks = [each.register_forward_pre_hook(_fit) for each in module.modules() if isinstance(each, _BatchNorm)]
    with torch.no_grad():
        module(*batch)
    for hook in hooks:
        hook.remove()
    return [Weight(seed, row, shape) for seed, row, _, shape in seeded.values()]


# Scale of a residual branch relative to its shortcut, as in trained nets: with 1, a rounding in the first of 50 layers
# would change the result.
_BRANCH = 2.0**-2
_BatchNorm = nn.modules.batchnorm._BatchNorm


def rounded_error(module: nn.Module, batch: tuple[torch.Tensor, ...], dtype: torch.dtype, expected: Array) -> float:
    """Return the error of a net's first result against `expected` (`relative_error`) if operands of its convolutions
    and linear layers are rounded to a type."""

    def rounded(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (given[0].to(dtype).to(given[0].dtype), *given[1:])

    layers = [each for each in module.modules() if isinstance(each, nn.Conv1d | nn.Conv2d | nn.Linear)]
    hooks = [each.register_forward_pre_hook(rounded) for each in layers]
    with torch.no_grad():
        result = module(*batch)
    for hook in hooks:
        hook.remove()
    first = result if isinstance(result, torch.Tensor) else result[0]
    return relative_error(first.numpy(), expected)


def relative_error(found: Array, expected: Array) -> float:
    """Return the root mean square of the difference over that of the expected result."""
    wide = expected.astype(np.float64)
    return float(
        np.sqrt(np.square(found.astype(np.float64) - wide).mean() / max(float(np.square(wide).mean()), 1e-300))
    )


def _fit(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Set a batch norm so that it multiplies by one power of two and subtracts the channel's mean."""
    assert isinstance(module, _BatchNorm)
    (x,) = inputs
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, deviation = x.mean(axes), x.std(axes, correction=0).mean()
    scale = 2.0 ** round(float(-torch.log2(deviation + 1e-20)))
    if getattr(module, "is_branch", False):
        scale *= _BRANCH
    variance = torch.tensor(1.0) - module.eps
    while float(variance + module.eps) != 1.0:
        variance = torch.nextafter(variance, torch.tensor(2.0 if float(variance + module.eps) < 1 else 0.0))
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.zero_()
    module.running_var.copy_(variance)
    module.weight.copy_(torch.full_like(module.weight, scale))
    module.bias.copy_(-mean * scale)


def seed_onnx(model: onnx.ModelProto, name: str, least: int) -> list[Weight]:
    """Replace the float32 initializers with two or more axes and at least this many elements by generated values of
    about the same variance; changes the model."""
    made = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) < least:
            continue
        old, shape = numpy_helper.to_array(tensor), tuple(tensor.dims)
        if not old.std():
            continue
        weight = Weight(seed_of(name, tensor.name), int(np.prod(shape[1:])), shape)
        unit = 2.0 ** exponent_of(1, float(old.std()))
        tensor.CopyFrom(numpy_helper.from_array(weight.values().astype(np.float32) * np.float32(unit), tensor.name))
        made.append(weight)
    return made


def inputs_of(name: str, described: Mapping[str, tuple[tuple[int, ...], int | None]]) -> dict[str, Any]:
    """Return the inputs of a net for a pack: each is a seed."""
    result: dict[str, Any] = {}
    for key, (shape, end) in described.items():
        seed = seed_of(name, "input", key)
        make = (
            {"kind": "reals", "seed": seed}
            if end is None
            else {"kind": "integers", "seed": seed, "low": 0, "high": end}
        )
        result[key] = {"name": key, "dtype": "float32" if end is None else "int64", "shape": list(shape), "make": make}
    return result
