"""Evaluation of creation, indexing, slicing and reshaping."""

from __future__ import annotations

import math

import numpy as np
from onnx import numpy_helper

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.evaluation.operands import MAXIMUM_ELEMENTS, NotEvaluatedError, Operands, evaluates


@evaluates("Gather")
def _gather(operands: Operands) -> np.ndarray:
    array = operands.array(0)
    axis = operands.context.axis(operands.context.attribute("axis", 0), array.ndim)
    indices = operands.real(1)
    _check_indices(operands, indices, array.shape[axis])
    taken = np.empty(array.shape[:axis] + indices.shape + array.shape[axis + 1 :], array.dtype)
    taken[...] = np.take(array, indices, axis=axis)
    return taken


def _check_indices(operands: Operands, indices: np.ndarray, size: int) -> None:
    if indices.size and (indices.min() < -size or indices.max() >= size):
        operands.context.invalid(f"an index lies outside [-{size}, {size})")


@evaluates("Slice")
def _slice(operands: Operands) -> np.ndarray:
    context, array = operands.context, operands.array(0)
    if context.opset < 10:
        starts, ends = list(context.required_attribute("starts")), list(context.required_attribute("ends"))
        axes, steps = list(context.attribute("axes", list(range(len(starts))))), [1] * len(starts)
    else:
        starts, ends = operands.integers(1), operands.integers(2)
        axes = operands.integers(3) if operands.given(3) else list(range(len(starts)))
        steps = operands.integers(4) if operands.given(4) else [1] * len(starts)
    index = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, context.axes(axes, array.ndim), steps, strict=True):
        if step == 0:
            context.invalid("a step is 0")
        to_start = step < 0 and (end < -array.shape[axis] or end in (2**31 - 1, 2**63 - 1))
        index[axis] = slice(start, None if to_start else end, step)
    return array[tuple(index)]


@evaluates("Concat")
def _concat(operands: Operands) -> np.ndarray:
    arrays = [operands.array(i) for i in range(operands.count)]
    axis = operands.context.axis(operands.context.attribute("axis", 1), arrays[0].ndim)
    if sum(a.size for a in arrays) > MAXIMUM_ELEMENTS:
        raise NotEvaluatedError
    return np.concatenate(arrays, axis=axis)


def _axes(operands: Operands) -> list[int] | None:
    if operands.given(1):
        return operands.integers(1)
    axes = operands.context.attribute("axes", None)
    return None if axes is None else list(axes)


@evaluates("Unsqueeze")
def _unsqueeze(operands: Operands) -> np.ndarray:
    array, axes = operands.array(0), _axes(operands) or []
    new = sorted(operands.context.axes(axes, array.ndim + len(axes)))
    shape = list(array.shape)
    for axis in new:
        shape.insert(axis, 1)
    return array.reshape(shape)


@evaluates("Squeeze")
def _squeeze(operands: Operands) -> np.ndarray:
    array, axes = operands.array(0), _axes(operands)
    if axes is None:
        removed = [axis for axis, size in enumerate(array.shape) if size == 1]
    else:
        removed = operands.context.axes(axes, array.ndim)
        if any(array.shape[axis] != 1 for axis in removed):
            operands.context.invalid(f"axes {axes} of shape {array.shape} are not all of size 1")
    return array.reshape([size for axis, size in enumerate(array.shape) if axis not in removed])


@evaluates("Reshape")
def _reshape(operands: Operands) -> np.ndarray:
    if operands.context.opset < 5:
        raise NotEvaluatedError
    array, target = operands.array(0), operands.integers(1)
    if not operands.context.attribute("allowzero", 0):
        target = [array.shape[i] if size == 0 and i < array.ndim else size for i, size in enumerate(target)]
    if -1 in target:
        rest = math.prod(size for size in target if size != -1)
        if rest == 0 or array.size % rest:
            operands.context.invalid(f"{array.shape} cannot be reshaped to {target}")
    elif math.prod(target) != array.size:
        operands.context.invalid(f"{array.shape} cannot be reshaped to {target}")
    return array.reshape(target)


@evaluates("Flatten")
def _flatten(operands: Operands) -> np.ndarray:
    array, axis = operands.array(0), operands.context.attribute("axis", 1)
    if not -array.ndim <= axis <= array.ndim:
        operands.context.invalid(f"axis {axis} does not exist in rank {array.ndim}")
    axis = axis + array.ndim if axis < 0 else axis
    return array.reshape([math.prod(array.shape[:axis]), math.prod(array.shape[axis:])])


@evaluates("Transpose")
def _transpose(operands: Operands) -> np.ndarray:
    array = operands.array(0)
    order = operands.context.attribute("perm", list(range(array.ndim))[::-1])
    if sorted(order) != list(range(array.ndim)):
        operands.context.invalid(f"perm {list(order)} is not a permutation of {array.ndim} axes")
    return np.transpose(array, order)


@evaluates("Split")
def _split(operands: Operands) -> list[np.ndarray]:
    context, array = operands.context, operands.array(0)
    axis = context.axis(context.attribute("axis", 0), array.ndim)
    size, parts = array.shape[axis], len(context.node.output)
    lengths = operands.integers(1) if operands.given(1) else list(context.attribute("split", []))
    if not lengths:
        chunk = -(-size // parts)
        lengths = [min(chunk, max(0, size - i * chunk)) for i in range(parts)]
    if sum(lengths) != size or len(lengths) != parts or min(lengths, default=0) < 0:
        context.invalid(f"a size of {size} cannot be split into {parts} parts of {lengths}")
    return np.split(array, np.cumsum(lengths)[:-1], axis=axis)


@evaluates("Expand")
def _expand(operands: Operands) -> np.ndarray:
    array, target = operands.array(0), operands.sizes(1)
    try:
        shape = np.broadcast_shapes(array.shape, tuple(target))
    except ValueError:
        operands.context.invalid(f"{array.shape} does not broadcast with {target}")
    if math.prod(shape) > MAXIMUM_ELEMENTS:
        raise NotEvaluatedError
    return np.broadcast_to(array, shape).copy()


@evaluates("Tile")
def _tile(operands: Operands) -> np.ndarray:
    array = operands.array(0)
    if operands.context.opset < 6 or operands.count != 2:
        raise NotEvaluatedError
    repeats = operands.sizes(1)
    if len(repeats) != array.ndim:
        operands.context.invalid(f"{len(repeats)} repeats for {array.ndim} axes")
    if math.prod(repeats) * array.size > MAXIMUM_ELEMENTS:
        raise NotEvaluatedError
    return np.tile(array, repeats)


@evaluates("Range")
def _range(operands: Operands) -> np.ndarray:
    start, limit, delta = (operands.real(i).reshape(-1)[0] for i in range(3))
    if delta == 0:
        operands.context.invalid("delta is 0")
    count = max(0, math.ceil((limit.astype(object) - start.astype(object)) / delta.astype(object)))
    if count > MAXIMUM_ELEMENTS:
        raise NotEvaluatedError
    dtype = dtypes.numpy_dtype(operands.dtype)
    return (start + np.arange(count).astype(dtype) * delta).astype(dtype)


@evaluates("ConstantOfShape")
def _constant_of_shape(operands: Operands) -> np.ndarray:
    tensor = operands.context.attribute("value", None)
    value = np.zeros(1, np.float32) if tensor is None else numpy_helper.to_array(tensor)
    if value.size != 1:
        operands.context.invalid("its value must hold one element")
    sizes = operands.sizes(0)
    operands.dtype = dtypes.NAMES[tensor.data_type] if tensor is not None else "float32"
    return np.full(sizes, value.reshape(-1)[0], value.dtype)


@evaluates("ScatterND")
def _scatter_nd(operands: Operands) -> np.ndarray:
    if operands.context.attribute("reduction", "none") != "none":
        raise NotEvaluatedError
    array, indices, updates = operands.array(0).copy(), operands.real(1), operands.array(2)
    depth = indices.shape[-1]
    for axis in range(depth):
        _check_indices(operands, indices[..., axis], array.shape[axis])
    for position in np.ndindex(*indices.shape[:-1]):
        array[tuple(indices[position])] = updates[position]
    return array


@evaluates("ScatterElements")
def _scatter_elements(operands: Operands) -> np.ndarray:
    if operands.context.attribute("reduction", "none") != "none":
        raise NotEvaluatedError
    array, indices, updates = operands.array(0).copy(), operands.real(1), operands.array(2)
    axis = operands.context.axis(operands.context.attribute("axis", 0), array.ndim)
    _check_indices(operands, indices, array.shape[axis])
    for position in np.ndindex(*indices.shape):
        target = list(position)
        target[axis] = indices[position]
        array[tuple(target)] = updates[position]
    return array
