"""Convolutions written as matmuls, in the form that the matmul's schedule recognizes.

A convolution is the matmul of the filters, oc x (ic kh kw), and of the columns, (oh ow) x (ic kh kw), which are
never stored: the schedule reads the image when it fills a tile of shared memory, and the padding value outside
the image. Sums of float16 and bfloat16 are float32, those of 8-bit integers int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.annotations import FUSABLE
from schedules.gpu.matmul_form import ALONG_ROWS, WIDER
from schedules.ir.stages import product
from schedules.ir.tir import Attrs, BlockBuilder, Call, Expr, Index, Tensor, tirx, tvm

te = tvm.te
_PADDING = "tensorwright.padding"
_LAYOUTS = {1: ("NCW", "OIW"), 2: ("NCHW", "OIHW"), 3: ("NCDHW", "OIDHW")}


@dataclass(frozen=True)
class Window:
    """Window of a convolution: one number for each spatial dimension; `fill` is the padding value."""

    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    fill: int | float = 0

    def padded(self, widths: Sequence[int], fill: int | float) -> Window:
        """The same window over an image without its padding (before and after, dimension by dimension)."""
        return Window(self.strides, tuple(widths[::2]), tuple(widths[1::2]), self.dilation, fill)


def convolution(data: Tensor, weight: Tensor, kernel: Sequence[int], window: Window, out: str) -> Tensor:
    """A convolution of one group: (batch, channels, *image) by (filters, channels, *kernel), the image static.

    Args:
        weight: the filters, or a matrix with one filter per row.
        out: the element type of the result.
    """
    batch, channels, *image = data.shape
    filters, channels = int(weight.shape[0]), int(channels)
    size = [
        (int(length) + before + after - dilation * (taps - 1) - 1) // stride + 1
        for length, before, after, dilation, taps, stride in zip(
            image, window.before, window.after, window.dilation, kernel, window.strides, strict=True
        )
    ]
    taps, wide = product(kernel) or 1, WIDER.get(str(data.dtype), str(data.dtype))
    depth = channels * taps

    def tap(k: Expr) -> list[Expr]:
        """The position in the kernel of a column's element."""
        positions: list[Index] = []
        step = 1
        for length in reversed(kernel):
            positions.insert(0, k // step % length)
            step *= length
        return positions

    def column(b: Expr, *at: Expr) -> Expr:
        *pixel, k = at
        walk = zip(pixel, tap(k), window.strides, window.dilation, window.before, strict=True)
        position = [at * stride + here * dilation - before for at, here, stride, dilation, before in walk]
        value = data(b, k // taps, *position)
        if not any((*window.before, *window.after)):
            return value
        inside = tirx.all(
            *(test for index, length in zip(position, image, strict=True) for test in (index >= 0, index < length))
        )
        return tirx.if_then_else(inside, value, tirx.const(window.fill, str(data.dtype)))

    lines = weight
    if len(weight.shape) > 2:
        lines = te.compute((filters, depth), lambda o, k: weight(o, k // taps, *tap(k)), name="filters")
    columns = te.compute((batch, *size, depth), column, name="columns", attrs={ALONG_ROWS: 1})
    k = te.reduce_axis((0, depth), name="k")
    total = te.compute(
        (batch, filters, *size),
        lambda b, o, *at: te.sum(lines(o, k).astype(wide) * columns(b, *at, k).astype(wide), axis=k),
        name="product",
    )
    if out == wide:
        return total
    return te.compute(total.shape, lambda *at: total(*at).astype(out), name="image")


def legalize_convolution(builder: BlockBuilder, call: Call) -> Expr:
    """relax.nn.conv1d to conv3d as a matmul if it has one group and a static image size, otherwise as TVM does.

    A constant padding before it becomes the convolution's own.
    """
    data, weight = call.args
    attrs = call.attrs
    rank = len(attrs.strides)
    window = _window(attrs, rank)
    if (found := _padding(builder, data)) is not None and not any((*window.before, *window.after)):
        data, widths, fill = found
        window = window.padded(widths, fill)
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == _LAYOUTS[rank] and int(attrs.groups) == 1
    if not (plain and _is_static(data, 1) and _is_static(weight, 0)):
        return _by_tvm(builder, call)
    out = str(call.ty.dtype)
    kernel = [int(size) for size in weight.ty.shape.values[2:]]
    return builder.call_te(
        lambda image, filters: convolution(image, filters, kernel, window, out),
        data,
        _as_matrix(weight),
        primfunc_name_hint=f"conv{rank}d",
        primfunc_attrs={"op_pattern": FUSABLE},
    )


def _as_matrix(weight: Expr) -> Expr:
    """Constant filters, one per row: elements of a row are then known to be adjacent in memory."""
    if not isinstance(weight, tvm.ir.GenericConst):
        return weight
    values = weight.value.numpy()
    return tvm.relax.const(values.reshape(len(values), -1), str(weight.ty.dtype))


def _window(attrs: Attrs, rank: int) -> Window:
    strides, padding, dilation = (
        tuple(int(each) for each in values) for values in (attrs.strides, attrs.padding, attrs.dilation)
    )
    return Window(strides, padding[:rank], padding[rank:], dilation)


def _is_static(tensor: Expr, first: int) -> bool:
    shape = tensor.ty.shape
    return shape is not None and all(isinstance(size, tirx.IntImm) for size in shape.values[first:])


def _by_tvm(builder: BlockBuilder, call: Call) -> Expr:
    return call.op.get_attr("FLegalize")(builder, call)


def legalize_pad(builder: BlockBuilder, call: Call) -> Expr:
    """relax.nn.pad as TVM writes it, annotated so that a convolution can do the padding itself."""
    padded = _by_tvm(builder, call)
    widths = [int(each) for each in call.attrs.pad_width]
    constant = str(call.attrs.pad_mode) == "constant" and min(widths, default=0) >= 0
    if not constant or any(widths[:4]) or len(widths) < 6:
        return padded
    value = float(call.attrs.pad_value)
    marks = {"widths": widths[4:], "fill": str(value)}
    kernel = padded.args[0]
    builder.update_func(kernel, builder.get()[kernel].with_attr(_PADDING, marks))
    return padded


def _padding(builder: BlockBuilder, data: Expr) -> tuple[Expr, list[int], int | float] | None:
    """The image before padding of its spatial dimensions, the widths and the value."""
    pad: Expr = builder.lookup_binding(data) if isinstance(data, tvm.relax.Var) else None
    kernel = pad.args[0] if isinstance(pad, tvm.relax.Call) and pad.args else None
    if not isinstance(kernel, tvm.ir.GlobalVar):
        return None
    marks = builder.get()[kernel].attrs.get(_PADDING)
    if marks is None:
        return None
    fill = float(marks["fill"])
    whole = "int" in str(data.ty.dtype)
    return pad.args[1].fields[0], [int(each) for each in marks["widths"]], int(fill) if whole else fill
