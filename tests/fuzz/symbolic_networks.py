"""Templates of neural-network nodes and quantization for graphs with symbolic sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.symbolic_builder import Dim, Shape, SymbolicBuilder, Tensor
from tests.fuzz.symbolic_operators import template


def _image(build: SymbolicBuilder, most: int = 4) -> Tensor | None:
    """A value of finite elements with a known number of channels: a convolution may spread NaN to neighbors."""
    tensor = build.pick(ranks=(3, most))
    known = tensor is not None and isinstance(tensor.shape[1], int) and tensor.shape[1] > 0
    return tensor if known and not build.special else None


def _channels(tensor: Tensor) -> int:
    channels = tensor.shape[1]
    assert isinstance(channels, int)
    return channels


def _windows(build: SymbolicBuilder, dim: Dim, what: str, most: int) -> Dim:
    return build.size(f"{what} of ({dim})", most)


@template
def convolution(build: SymbolicBuilder) -> bool:
    tensor = _image(build)
    if tensor is None:
        return False
    channels, rank = _channels(tensor), tensor.rank - 2
    groups = build.choice([1, 1, channels])
    filters = groups * build.integer(1, 8)
    kernel = [build.integer(1, 3) for _ in range(rank)]
    strides, dilations = [build.integer(1, 2) for _ in kernel], [build.integer(1, 2) for _ in kernel]
    pads = [build.integer(0, 1) for _ in range(2 * rank)]
    what = f"conv{kernel}{strides}{dilations}{pads}"
    sizes = [_windows(build, dim, f"{what}{i}", build.estimate(dim) + 2) for i, dim in enumerate(tensor.shape[2:])]
    shape: Shape = (tensor.shape[0], filters, *sizes)
    if not build.fits(shape):
        return False
    fan_in = channels // groups * int(np.prod(kernel))
    weight = build.random.standard_normal((filters, channels // groups, *kernel)) / np.sqrt(fan_in)
    names = [tensor.name, build.constant(weight), build.constant(build.uniform(-1, 1, (filters,)))]
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    if build.chance(0.2):
        attributes = {"strides": strides, "auto_pad": build.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])}
        if groups != 1:
            attributes["group"] = groups
    build.node("Conv", names, [build.like(tensor, shape, exact=False)], **attributes)
    return True


@template
def transposed_convolution(build: SymbolicBuilder) -> bool:
    tensor = _image(build)
    if tensor is None:
        return False
    channels, rank = _channels(tensor), tensor.rank - 2
    filters, strides = build.integer(1, 6), [build.integer(1, 2) for _ in range(rank)]
    kernel = [build.integer(1, 3) for _ in range(rank)]
    what = f"transposed{kernel}{strides}"
    dims = tensor.shape[2:]
    sizes = [_windows(build, dim, f"{what}{i}", 2 * build.estimate(dim) + 3) for i, dim in enumerate(dims)]
    shape: Shape = (tensor.shape[0], filters, *sizes)
    if not build.fits(shape):
        return False
    names = [tensor.name, build.constant(build.uniform(-0.5, 0.5, (channels, filters, *kernel)))]
    build.node("ConvTranspose", names, [build.like(tensor, shape, exact=False, bounded=False)], strides=strides)
    return True


@template
def pooling(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(3, 4))
    if tensor is None or build.special:
        return False
    rank = tensor.rank - 2
    if build.chance(0.2):
        shape: Shape = (*tensor.shape[:2], *[1] * rank)
        operator = build.choice(["GlobalAveragePool", "GlobalMaxPool"])
        build.node(operator, [tensor.name], [build.like(tensor, shape, exact=tensor.exact and "Max" in operator)])
        return True
    operator = build.choice(["MaxPool", "AveragePool", "LpPool"])
    kernel = [build.integer(1, 3) for _ in range(rank)]
    strides = [build.integer(1, 2) for _ in kernel]
    pads = [build.integer(0, k - 1) for k in kernel] * 2
    attributes: dict[str, Any] = {"ceil_mode": build.integer(0, 1)} if operator != "LpPool" else {}
    if operator == "AveragePool":
        attributes["count_include_pad"] = build.integer(0, 1)
    what = f"pool{kernel}{strides}{pads}{attributes.get('ceil_mode')}"
    sizes = [_windows(build, dim, f"{what}{i}", build.estimate(dim) + 2) for i, dim in enumerate(tensor.shape[2:])]
    result = build.like(tensor, (*tensor.shape[:2], *sizes), exact=tensor.exact and operator == "MaxPool")
    results: list[Tensor | None] = [result]
    if operator == "MaxPool" and tensor.exact and build.chance(0.3):
        results.append(Tensor("", result.shape, "int64", exact=True))
    build.node(operator, [tensor.name], results, kernel_shape=kernel, strides=strides, pads=pads, **attributes)
    return True


@template
def normalization(build: SymbolicBuilder) -> bool:
    operator = build.choice(["BatchNormalization", "InstanceNormalization", "LayerNormalization"])
    tensor = build.pick(ranks=(2 if operator != "InstanceNormalization" else 3, 4))
    if tensor is None:
        return False
    layer = operator == "LayerNormalization"
    dim = tensor.shape[-1 if layer else 1]
    if not isinstance(dim, int) or dim < 2:
        return False
    scale, shift = (build.constant(build.uniform(0.5, 1.5, (dim,))) for _ in range(2))
    names = [tensor.name, scale, shift]
    if operator == "BatchNormalization":
        names += [build.constant(build.uniform(-1, 1, (dim,))), build.constant(build.uniform(0.5, 2, (dim,)))]
    # A large epsilon: otherwise rows that are constant except for rounding become noise.
    attributes: dict[str, Any] = {} if operator == "BatchNormalization" else {"epsilon": 0.1}
    build.node(operator, names, [build.like(tensor, exact=False)], **attributes)
    return True


@template
def resize(build: SymbolicBuilder) -> bool:
    tensor = _image(build)
    if tensor is None:
        return False
    rank = tensor.rank - 2
    # Factors for which rounding does not put a position halfway between two elements.
    scales = [build.choice([2.0, 0.5, 1.5, 3.0]) for _ in range(rank)]
    mode = build.choice(["nearest", "linear", "cubic"] if rank == 2 else ["nearest", "linear"])
    attributes = {"mode": mode, "coordinate_transformation_mode": build.choice(["asymmetric", "half_pixel"])}
    if mode == "nearest":
        attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    sizes = [
        _windows(build, dim, f"resize {scale}", int(build.estimate(dim) * scale) + 1)
        for dim, scale in zip(tensor.shape[2:], scales, strict=True)
    ]
    shape: Shape = (*tensor.shape[:2], *sizes)
    if not build.fits(shape):
        return False
    names = [tensor.name, "", build.constant([1.0, 1.0, *scales])]
    exact = tensor.exact and mode == "nearest"
    build.node("Resize", names, [build.like(tensor, shape, exact=exact, bounded=False)], **attributes)
    return True


@template
def quantized(build: SymbolicBuilder) -> bool:
    """QuantizeLinear and DequantizeLinear, per tensor or along an axis, and a matmul of quantized values."""
    tensor = build.pick(ranks=(1, 4), exact=True)
    if tensor is None or build.special:
        return False
    dtype = build.choice(["int8", "uint8"])
    known = [axis for axis, dim in enumerate(tensor.shape) if isinstance(dim, int) and dim > 1]
    axis = build.choice(known) if known and build.chance() else None
    shape = [] if axis is None else [tensor.shape[axis]]
    # Powers of two: quotients, and therefore rounding of halves, are exact.
    scale = build.constant(np.asarray(2.0 ** build.random.integers(-6, -2, shape), np.float32))
    zero = build.constant(np.asarray(build.random.integers(0, 20, shape), dtype))
    attributes = {} if axis is None else {"axis": axis}
    result = Tensor("", tensor.shape, dtype, exact=True)
    (low,) = build.node("QuantizeLinear", [tensor.name, scale, zero], [result], **attributes)
    (real,) = build.node("DequantizeLinear", [low.name, scale, zero], [build.like(tensor)], **attributes)
    last = tensor.shape[-1]
    if isinstance(last, int) and last > 0 and build.chance():
        weight = build.constant(np.asarray(build.random.integers(-100, 100, (last, 5)), np.int8))
        steps, zeros = build.constant(build.uniform(0.01, 0.02, (5,))), build.constant(np.zeros(5, np.int8))
        matrix = Tensor("", (last, 5), "float32", exact=True)
        (wide,) = build.node("DequantizeLinear", [weight, steps, zeros], [matrix], axis=1)
        product = build.like(tensor, (*tensor.shape[:-1], 5), exact=False, bounded=False)
        build.node("MatMul", [real.name, wide.name], [product])
    return True
