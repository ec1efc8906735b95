"""Templates of neural-network nodes for random graphs: matmul, convolution, pooling, normalization, resize."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.graph_builder import MAX_ELEMENTS, GraphBuilder
from tests.fuzz.graph_operators import template


@template
def matmul(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=1)
    if tensor is None:
        return False
    columns = build.integer(1, 33)
    shape = (*tensor.shape[:-1], columns)
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    depth = tensor.shape[-1]
    weight = build.constant((build.random.standard_normal((depth, columns)) / np.sqrt(depth)).astype(np.float32))
    build.node("MatMul", [tensor.name, weight], [shape], bounded=tensor.bounded)
    return True


@template
def matmul_of_values(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=2, max_rank=4, bounded=True)
    if tensor is None:
        return False
    order = [*range(tensor.rank - 2), tensor.rank - 1, tensor.rank - 2]
    turned = tuple(tensor.shape[axis] for axis in order)
    (other,) = build.node("Transpose", [tensor.name], [turned], perm=order)
    shape = (*tensor.shape[:-1], tensor.shape[-2])
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    build.node("MatMul", [tensor.name, other.name], [shape], bounded=False)
    return True


@template
def gemm(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=2, max_rank=2)
    if tensor is None:
        return False
    turn_a, turn_b = build.integer(0, 1), build.integer(0, 1)
    rows, depth = tensor.shape[::-1] if turn_a else tensor.shape
    columns = build.integer(1, 20)
    weight = build.random.standard_normal((columns, depth) if turn_b else (depth, columns)) / np.sqrt(depth)
    names = [tensor.name, build.constant(weight.astype(np.float32))]
    if build.chance(0.8):
        shape = build.choice([(columns,), (1, columns), (rows, 1), (1,), (rows, columns)])
        names.append(build.constant(build.random.uniform(-1, 1, shape).astype(np.float32)))
    attributes: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if build.chance(0.4) else {}
    build.node("Gemm", names, [(rows, columns)], transA=turn_a, transB=turn_b, bounded=tensor.bounded, **attributes)
    return True


def _window(build: GraphBuilder, sizes: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Kernel, strides, dilations and pads that fit; pads are smaller than the kernel."""
    kernel = [build.integer(1, min(4, size)) for size in sizes]
    strides = [build.integer(1, 2) for _ in sizes]
    dilations = [build.integer(1, 2) if size >= 2 * k else 1 for size, k in zip(sizes, kernel, strict=True)]
    pads = [build.integer(0, k - 1) for k in kernel] + [build.integer(0, k - 1) for k in kernel]
    return kernel, strides, dilations, pads


def _output_sizes(
    sizes: tuple[int, ...], kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
) -> list[int]:
    count = len(sizes)
    return [
        (sizes[k] + pads[k] + pads[k + count] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        for k in range(count)
    ]


@template
def convolution(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=3, max_rank=5)
    if tensor is None:
        return False
    channels, sizes = tensor.shape[1], tensor.shape[2:]
    groups = build.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
    filters = groups * build.integer(1, 1 + 16 // groups)
    window = _window(build, sizes)
    if window is None:
        return False
    kernel, strides, dilations, pads = window
    outputs = _output_sizes(sizes, kernel, strides, dilations, pads)
    shape = (tensor.shape[0], filters, *outputs)
    if min(outputs) < 1 or np.prod(shape) > MAX_ELEMENTS:
        return False
    names = [tensor.name, build.weight(filters, channels // groups, *kernel)]
    if build.chance():
        names.append(build.constant(build.random.uniform(-1, 1, filters).astype(np.float32)))
    build.node(
        "Conv",
        names,
        [shape],
        group=groups,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        bounded=tensor.bounded,
    )
    return True


@template
def transposed_convolution(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=3, max_rank=4)
    if tensor is None:
        return False
    channels, sizes = tensor.shape[1], tensor.shape[2:]
    groups = build.choice([g for g in (1, 2, channels) if channels % g == 0])
    per_group = build.integer(1, 8)
    kernel = [build.integer(1, 3) for _ in sizes]
    strides = [build.integer(1, 2) for _ in sizes]
    pads = [build.integer(0, (k - 1) // 2) for k in kernel] * 2
    outputs = [strides[k] * (size - 1) + kernel[k] - pads[k] - pads[k + len(sizes)] for k, size in enumerate(sizes)]
    shape = (tensor.shape[0], groups * per_group, *outputs)
    if min(outputs) < 1 or np.prod(shape) > MAX_ELEMENTS:
        return False
    names = [tensor.name, build.weight(channels, per_group, *kernel)]
    build.node(
        "ConvTranspose", names, [shape], group=groups, kernel_shape=kernel, strides=strides, pads=pads, bounded=False
    )
    return True


@template
def pooling(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=3, max_rank=5)
    if tensor is None:
        return False
    sizes = tensor.shape[2:]
    if build.chance(0.2):
        operator = build.choice(["GlobalAveragePool", "GlobalMaxPool"])
        build.node(operator, [tensor.name], [(*tensor.shape[:2], *(1 for _ in sizes))], bounded=tensor.bounded)
        return True
    window = _window(build, sizes)
    if window is None:
        return False
    kernel, strides, dilations, pads = window
    operator = build.choice(["MaxPool", "AveragePool"])
    outputs = _output_sizes(sizes, kernel, strides, dilations, pads)
    if min(outputs) < 1:
        return False
    attributes: dict[str, Any] = {"count_include_pad": build.integer(0, 1)} if operator == "AveragePool" else {}
    shape = (*tensor.shape[:2], *outputs)
    build.node(
        operator,
        [tensor.name],
        [shape],
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        bounded=tensor.bounded,
        **attributes,
    )
    return True


@template
def batch_normalization(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=2)
    if tensor is None:
        return False
    channels = tensor.shape[1]
    values = [build.random.uniform(low, high, channels) for low, high in ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2))]
    names = [tensor.name, *(build.constant(value.astype(np.float32)) for value in values)]
    build.node("BatchNormalization", names, [tensor.shape], bounded=tensor.bounded)
    return True


@template
def instance_normalization(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=3)
    if tensor is None:
        return False
    channels = tensor.shape[1]
    scale, shift = (build.constant(build.random.uniform(0.5, 1.5, channels).astype(np.float32)) for _ in range(2))
    build.node("InstanceNormalization", [tensor.name, scale, shift], [tensor.shape], epsilon=0.1)
    return True


@template
def parametric_relu(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=2)
    if tensor is None:
        return False
    slope = build.constant(
        build.random.uniform(0, 0.5, (tensor.shape[1], *(1 for _ in tensor.shape[2:]))).astype(np.float32)
    )
    build.node("PRelu", [tensor.name, slope], [tensor.shape], bounded=tensor.bounded)
    return True


@template
def resize(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=4, max_rank=4)
    if tensor is None:
        return False
    mode = build.choice(["nearest", "linear", "cubic"])
    target = [build.integer(1, 2 * size) for size in tensor.shape[2:]]
    shape = (*tensor.shape[:2], *target)
    if np.prod(shape) > MAX_ELEMENTS:
        return False
    names = [tensor.name, "", "", build.constant(np.array(shape, np.int64))]
    coordinates = build.choice(["half_pixel", "asymmetric", "pytorch_half_pixel"])
    build.node("Resize", names, [shape], mode=mode, coordinate_transformation_mode=coordinates, bounded=tensor.bounded)
    return True


@template
def depth_to_space(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=4, max_rank=4)
    if tensor is None or tensor.shape[1] % 4:
        return False
    batch, channels, height, width = tensor.shape
    shape = (batch, channels // 4, height * 2, width * 2)
    build.node(
        "DepthToSpace", [tensor.name], [shape], blocksize=2, mode=build.choice(["DCR", "CRD"]), bounded=tensor.bounded
    )
    return True


@template
def recurrent(build: GraphBuilder) -> bool:
    tensor = build.pick(min_rank=3, max_rank=3, bounded=True)
    if tensor is None:
        return False
    steps, batch, features = tensor.shape
    operator, gates = build.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    direction = build.choice(["forward", "reverse", "bidirectional"])
    directions = 2 if direction == "bidirectional" else 1
    hidden = build.integer(1, 9)
    names = [
        tensor.name,
        build.weight(directions, gates * hidden, features),
        build.weight(directions, gates * hidden, hidden),
    ]
    if build.chance():
        names.append(build.constant(build.random.uniform(-1, 1, (directions, 2 * gates * hidden)).astype(np.float32)))
    shapes = [(steps, directions, batch, hidden), (directions, batch, hidden)]
    build.node(operator, names, shapes, hidden_size=hidden, direction=direction)
    return True
