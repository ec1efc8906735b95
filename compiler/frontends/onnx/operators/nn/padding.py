"""Pad: constant borders, or borders repeated from the data."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, require_entries
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import tensor_shape
from schedules.ir.tvm_types import Expr

_REFLECT_ONCE = "reflect_once"
_MODES = ("constant", "reflect", "edge", "wrap")


@converter("Pad")
def pad_by_attributes(context: NodeContext) -> relax.Expr:
    """Pad before opset 11, with pads and value as attributes."""
    name = "pads" if context.has_attribute("pads") else "paddings"
    pads = [int(p) for p in context.required_attribute(name)]
    axes = list(range(context.rank(0)))
    value = context.literal(context.attribute("value", 0.0), context.dtype(0))
    return _pad(context, axes, pads, value)


@converter("Pad", since=11)
def pad(context: NodeContext) -> relax.Expr:
    """Pad in every mode; pads may be negative (cropping) and known only at run time."""
    pads = context.shape_values(1, signed=True)
    rank = context.rank(0)
    axes = context.axes(context.integers(3), rank) if context.has_input(3) else list(range(rank))
    dtype = context.dtype(0)
    value = context.input(2) if context.has_input(2) else context.literal(0, dtype)
    return _pad(context, axes, pads, value)


def _pad(context: NodeContext, axes: list[int], pads: Sequence[Dim], value: relax.Expr) -> relax.Expr:
    mode, arithmetic = context.choice("mode", "constant", _MODES), context.arithmetic
    if len(pads) != 2 * len(axes):
        context.invalid(f"{len(pads)} pads for {len(axes)} axes")
    shape = context.shape(0)
    pads_before = {axis: pads[i] for i, axis in enumerate(axes)}
    pads_after = {axis: pads[i + len(axes)] for i, axis in enumerate(axes)}
    sizes: list[Dim] = []
    for axis, size in enumerate(shape):
        grown = arithmetic.add(arithmetic.add(size, pads_before.get(axis, 0)), pads_after.get(axis, 0))
        if isinstance(grown, int) and grown < 0:
            context.invalid(f"its pads leave a negative size at axis {axis}")
        sizes.append(grown)
    if mode == "constant" and all(isinstance(pad, int) and pad >= 0 for pad in pads):
        widths = [w for axis in range(len(shape)) for w in (pads_before.get(axis, 0), pads_after.get(axis, 0))]
        known = context.known(2) if context.opset >= 11 and context.has_input(2) else None
        fixed = 0 if context.opset >= 11 and not context.has_input(2) else None
        number = known.reshape(-1)[0].item() if known is not None and known.size else fixed
        if number is not None and dtypes.is_float(context.dtype(0)):
            return R.nn.pad(context.input(0), widths, "constant", number)
    data, offsets = context.input(0), [pads_before.get(axis, 0) for axis in range(len(shape))]
    if mode != "constant" and all(isinstance(pad, int) for pad in pads):
        # Cropped elements are not repeated.
        data = _cropped(context, pads_before, pads_after)
        offsets = [max(offset, 0) for offset in offsets]
    modes = [mode] * len(sizes)
    if mode != "constant":
        for axis, size in enumerate(tensor_shape(data)):
            if not context.arithmetic.equal_is_proved(size, sizes[axis]):
                require_entries(context, size, sizes[axis])
                around = pads_before.get(axis, 0), pads_after.get(axis, 0)
                if mode == "reflect" and not all(isinstance(each, int) for each in (size, *around)):
                    _require_one_reflection(context, size, around)
                    modes[axis] = _REFLECT_ONCE
    return _pad_kernel(context, data, modes, offsets, sizes, value)


def _require_one_reflection(context: NodeContext, size: Dim, pads: tuple[Dim, Dim]) -> None:
    """ONNX Runtime refuses to reflect more than once; for known sizes this is computed, like numpy.pad."""
    for pad in pads:
        least = context.arithmetic.add(context.arithmetic.maximum(pad, 0), 1)
        require(context, size, "at least", least)


def _cropped(context: NodeContext, pads_before: dict[int, int], pads_after: dict[int, int]) -> relax.Expr:
    """Return the input cropped by negative pads."""
    cuts = [axis for axis in pads_before if pads_before[axis] < 0 or pads_after[axis] < 0]
    if not cuts:
        return context.input(0)
    begins = [max(-pads_before[axis], 0) for axis in cuts]
    ends = [context.arithmetic.add(context.shape(0)[axis], min(pads_after[axis], 0)) for axis in cuts]
    return context.emit(R.strided_slice(context.input(0), cuts, begins, [expression(end) for end in ends]))


def _pad_kernel(
    context: NodeContext, data: relax.Expr, modes: list[str], offsets: list[Dim], sizes: list[Dim], value: relax.Expr
) -> relax.Expr:
    if value.ty.ndim:
        value = context.reshape(value, ())
    moved_axes = [
        axis
        for axis, size in enumerate(tensor_shape(data))
        if not (
            context.arithmetic.equal_is_proved(size, sizes[axis])
            and context.arithmetic.equal_is_proved(offsets[axis], 0)
        )
    ]

    def fill(source: te.Tensor, filler: te.Tensor, *arguments: Expr) -> te.Tensor:
        target, starts = arguments[: len(sizes)], arguments[len(sizes) :]

        def element(*indices: Expr) -> Expr:
            moved, inside = list(indices), []
            for axis in moved_axes:
                index, size = indices[axis] - starts[axis], source.shape[axis]
                if modes[axis] == "constant":
                    inside += [index >= 0, index < size]
                    moved[axis] = index
                else:
                    moved[axis] = _source_index(modes[axis], index, size)
            inner = source(*moved)
            return tirx.if_then_else(tirx.all(*inside), inner, filler()) if inside else inner

        return te.compute(target, element, name="pad")

    arguments = [expression(size) for size in sizes] + [expression(offset) for offset in offsets]
    result = context.emit_te(fill, data, value, *arguments, primfunc_name_hint=f"pad_{modes[0]}")
    return context.with_simple_sizes(result)


def _source_index(mode: str, index: Expr, size: Expr) -> Expr:
    """Return the source index of a padded position; reflection and wrapping repeat as often as needed, unless
    _REFLECT_ONCE: divisions by dynamic sizes would take most of the kernel's time."""
    if mode == _REFLECT_ONCE:
        last = size - 1
        return last - tirx.abs(last - tirx.abs(index))
    if mode == "edge":
        return tirx.max(tirx.min(index, size - 1), tirx.const(0, "int64"))
    if mode == "wrap":
        return tirx.floormod(index, size)
    period = tirx.max(2 * (size - 1), tirx.const(1, "int64"))
    folded = tirx.floormod(index, period)
    return tirx.min(folded, tirx.Select(size == 1, tirx.const(0, "int64"), period - folded))
