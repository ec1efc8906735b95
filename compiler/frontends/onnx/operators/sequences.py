"""Sequences and optionals.

Most exist only during import. Sequences whose length is known only at run time are tensors of all elements, which have
equal shapes: parts of length 1 of an axis of dynamic size, and elements that a loop adds to an empty sequence.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.tensor.indexing import concatenated, strided_slice
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import (
    Constant,
    OptionalValue,
    Runtime,
    SequenceValue,
    StackedSequence,
    Symbolic,
    Value,
    tensor_shape,
)


def sequence_input(context: NodeContext, index: int) -> SequenceValue:
    """Return input `index`, which must be a sequence (a filled optional counts as its content)."""
    value = context.value(index)
    while isinstance(value, OptionalValue) and value.value is not None:
        value = value.value
    if isinstance(value, StackedSequence):
        context.refuse(f"the length of the sequence that is its input {index} is known only when running")
    if not isinstance(value, SequenceValue):
        context.invalid(f"its input {index} is not a sequence")
    return value


@converter("SequenceConstruct", since=11)
def construct(context: NodeContext) -> Value:
    """Return a sequence of the inputs."""
    values = [context.value(i) for i in range(len(context.inputs))]
    return SequenceValue(values, context.dtype(0))


@converter("SequenceEmpty", since=11)
def empty(context: NodeContext) -> Value:
    """Return an empty sequence."""
    return SequenceValue([], dtypes.dtype_name(context.attribute("dtype", 1)))


def _position(context: NodeContext, index: int, length: int, default: int, last: int) -> int:
    """Return a position, counted from the end if negative; InvalidModelError outside [-length, last]."""
    position = int(context.scalar(index, default))
    if not -length <= position <= last:
        context.invalid(f"position {position} in a sequence of length {length}")
    return position + length if position < 0 else position


@converter("SequenceAt", since=11)
def at(context: NodeContext) -> Value:
    """Return the element at a position, which may be computed if all elements have the same shape."""
    stack = _stack(context) if context.known(1) is None else context.value(0)
    if isinstance(stack, StackedSequence):
        return Composer(context)("Gather", stack.tensor, context.value(1), axis=0)
    values = sequence_input(context, 0).values
    return values[_position(context, 1, len(values), 0, len(values) - 1)]


def _stack(context: NodeContext) -> Value:
    """Return input 0 as a stacked sequence if its elements have equal shapes and types; otherwise unchanged."""
    sequence = context.value(0)
    if not isinstance(sequence, SequenceValue) or not sequence.values:
        return sequence
    first, *rest = sequence.values
    if not isinstance(first, (Constant, Symbolic, Runtime)):
        return sequence
    for tensor in rest:
        if not isinstance(tensor, (Constant, Symbolic, Runtime)) or tensor.dtype != first.dtype:
            return sequence
        proved = context.arithmetic.equal_is_proved
        if len(tensor.shape) != len(first.shape) or not all(map(proved, first.shape, tensor.shape)):
            return sequence
    op = Composer(context)
    return StackedSequence(op("Concat", *(op("Unsqueeze", each, int64s(0)) for each in sequence.values), axis=0))


@converter("SequenceInsert", since=11)
def insert(context: NodeContext) -> Value:
    """Return a copy with one more element, by default at the end."""
    sequence = sequence_input(context, 0)
    position = _position(context, 2, len(sequence.values), len(sequence.values), len(sequence.values))
    values = [*sequence.values[:position], context.value(1), *sequence.values[position:]]
    return SequenceValue(values, sequence.dtype)


@converter("SequenceErase", since=11)
def erase(context: NodeContext) -> Value:
    """Return a copy without an element, by default the last one."""
    sequence = sequence_input(context, 0)
    position = _position(context, 1, len(sequence.values), -1, len(sequence.values) - 1)
    return SequenceValue([*sequence.values[:position], *sequence.values[position + 1 :]], sequence.dtype)


@converter("SequenceLength", since=11)
def length(context: NodeContext) -> np.ndarray | Value:
    """Return the number of elements."""
    sequence = context.value(0)
    if isinstance(sequence, StackedSequence):
        op = Composer(context)
        return op("Squeeze", op("Shape", sequence.tensor, start=0, end=1), int64s(0))
    return np.array(len(sequence_input(context, 0).values), np.int64)


@converter("SplitToSequence", since=11)
def split_to_sequence(context: NodeContext) -> Value:
    """Split along an axis into parts: of one given length, of given lengths, or of length 1 (then the axis can be
    dropped)."""
    data, shape = context.input(0), context.shape(0)
    axis = context.axis(context.attribute("axis", 0), len(shape))
    size = shape[axis]
    # ONNX ignores keepdims if lengths are given; PyTorch's exporter writes it for a length of 1 and expects it to
    # apply, as it does in ONNX Runtime.
    chunk = context.known(1) if context.has_input(1) else np.array(1)
    single = chunk is not None and chunk.shape == () and chunk == 1
    drop = single and not context.attribute("keepdims", 1)
    if not isinstance(size, int):
        if single:
            return _single_parts(context, axis, len(shape), drop)
        context.refuse(f"the size of axis {axis}, and so the number of parts, is not known when compiling")
    starts, lengths, position = [], _lengths(context, size), 0
    for part in lengths:
        starts.append(position)
        position += part
    if position != size or min(lengths, default=0) < 0:
        context.invalid(f"a size of {size} cannot be split into {lengths}")
    values: list[Value] = []
    for start, part in zip(starts, lengths, strict=True):
        piece = strided_slice(context, data, {axis: (start, part, 1)})
        if drop:
            piece = context.reshape(piece, [s for a, s in enumerate(shape) if a != axis])
        values.append(context.runtime(piece, context.dtype(0)))
    return SequenceValue(values, context.dtype(0))


def _single_parts(context: NodeContext, axis: int, rank: int, drop: bool) -> StackedSequence:
    op = Composer(context)
    stack = op("Transpose", context.value(0), perm=[axis, *(each for each in range(rank) if each != axis)])
    return StackedSequence(stack if drop else op("Unsqueeze", stack, int64s(axis + 1)))


def _lengths(context: NodeContext, size: int) -> list[int]:
    if not context.has_input(1):
        return [1] * size
    split = context.constant(1)
    if split.ndim:
        return [int(v) for v in split]
    chunk = int(split)
    if chunk <= 0:
        context.invalid(f"parts of length {chunk}")
    return [min(chunk, size - start) for start in range(0, size, chunk)]


@converter("ConcatFromSequence", since=11)
def concat_from_sequence(context: NodeContext) -> relax.Expr:
    """Concatenate the elements along an axis, or stack them along a new one."""
    if isinstance(stack := context.value(0), StackedSequence):
        return _joined(context, context.importer.builder.materialize(stack.tensor))
    sequence = sequence_input(context, 0)
    if not sequence.values:
        context.invalid("it concatenates an empty sequence")
    builder = context.importer.builder
    tensors = [builder.materialize(value) for value in sequence.values]  # type: ignore[arg-type]
    new = bool(context.attribute("new_axis", 0))
    rank = tensors[0].ty.ndim + new
    axis = context.axis(context.required_attribute("axis"), rank)
    if new:
        shapes = [list(tensor_shape(tensor)) for tensor in tensors]
        tensors = [context.reshape(t, [*s[:axis], 1, *s[axis:]]) for t, s in zip(tensors, shapes, strict=True)]
    return concatenated(context, tensors, axis)


def _joined(context: NodeContext, stack: relax.Expr) -> relax.Expr:
    """Concatenate the elements of a stack along an axis, or along a new one."""
    new = bool(context.attribute("new_axis", 0))
    rank = stack.ty.ndim - (not new)
    axis = context.axis(context.required_attribute("axis"), rank)
    moved = context.emit(relax.op.permute_dims(stack, [*range(1, axis + 1), 0, *range(axis + 1, stack.ty.ndim)]))
    if new:
        return moved
    shape = list(tensor_shape(moved))
    merged = context.arithmetic.multiply(shape[axis], shape[axis + 1])
    return context.reshape(moved, [*shape[:axis], merged, *shape[axis + 2 :]])


@converter("SequenceMap", since=17)
def sequence_map(context: NodeContext) -> list[Value]:
    """Apply the body to each element; additional inputs are sequences of the same length, or tensors used for all."""
    body, elements = context.required_attribute("body"), sequence_input(context, 0).values
    columns: list[list[Value]] = []
    for index in range(len(context.inputs)):
        value = context.value(index)
        is_sequence = isinstance(value, SequenceValue | StackedSequence)
        column = sequence_input(context, index).values if is_sequence else [value] * len(elements)
        if len(column) != len(elements):
            context.invalid(f"sequences of lengths {len(elements)} and {len(column)}")
        columns.append(column)
    results = [context.import_subgraph(body, list(row)) for row in zip(*columns, strict=True)]
    types = [output.type.tensor_type.elem_type for output in body.output]
    return [SequenceValue([row[i] for row in results], dtypes.dtype_name(t)) for i, t in enumerate(types)]


@converter("Optional", since=15)
def optional(context: NodeContext) -> Value:
    """Return an optional that contains the input, or an empty one."""
    return OptionalValue(context.value(0) if context.has_input(0) else None)


@converter("OptionalGetElement", since=15)
def optional_element(context: NodeContext) -> Value:
    """Return an optional's content; other values are their own content."""
    value = context.value(0)
    if isinstance(value, OptionalValue):
        if value.value is None:
            context.invalid("the optional is empty")
        return value.value
    return value


@converter("OptionalHasElement", since=15)
def optional_has_element(context: NodeContext) -> Value:
    """OptionalHasElement: True if an optional holds a value; a non-optional value always counts."""
    value = context.value(0) if context.has_input(0) else OptionalValue(None)
    return Constant(np.array(not isinstance(value, OptionalValue) or value.value is not None))
