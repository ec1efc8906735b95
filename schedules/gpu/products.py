"""Matrix products and convolutions written as products, in the form that the product's schedule knows.

A convolution is the product of the filters, oc x (ic kh kw), and of the columns, (oh ow) x (ic kh kw), which are
never stored: the schedule reads the image where it fills a tile of shared memory. Sums of float16 and bfloat16 are
float32, those of 8-bit integers int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schedules.tir import tirx, tvm

te = tvm.te
OUT_FUSABLE = 4  # relax's pattern kind: elementwise operators join this one's end


def sum_dtype(dtype: str) -> str:
    """The element type of sums of products."""
    return {"float16": "float32", "bfloat16": "float32", "int8": "int32", "uint8": "int32"}.get(dtype, dtype)


def convolution(
    data: Any, weight: Any, strides: Sequence[int], padding: Sequence[int], dilation: Sequence[int], out: str
) -> Any:
    """A 2-D convolution of one group, NCHW by OIHW, of static image size.

    Args:
        padding: top, left, bottom, right.
        out: the element type of the result.
    """
    batch, _, height, width = data.shape
    filters, channels, rows, columns = (int(each) for each in weight.shape)
    size_h = (int(height) + padding[0] + padding[2] - dilation[0] * (rows - 1) - 1) // strides[0] + 1
    size_w = (int(width) + padding[1] + padding[3] - dilation[1] * (columns - 1) - 1) // strides[1] + 1
    depth, wide = channels * rows * columns, sum_dtype(str(data.dtype))

    def column(b: Any, p: Any, k: Any) -> Any:
        y = (p // size_w) * strides[0] + (k // columns % rows) * dilation[0] - padding[0]
        x = (p % size_w) * strides[1] + (k % columns) * dilation[1] - padding[1]
        value = data[b, k // (rows * columns), y, x]
        if not any(padding):
            return value
        inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
        return tirx.if_then_else(inside, value, tirx.const(0, str(data.dtype)))

    lines = te.compute(
        (filters, depth),
        lambda o, k: weight[o, k // (rows * columns), k // columns % rows, k % columns],
        name="filters",
    )
    columns_of = te.compute((batch, size_h * size_w, depth), column, name="columns")
    k = te.reduce_axis((0, depth), name="k")
    total = te.compute(
        (batch, filters, size_h * size_w),
        lambda b, o, p: te.sum(lines[o, k].astype(wide) * columns_of[b, p, k].astype(wide), axis=k),
        name="product",
    )
    return te.compute(
        (batch, filters, size_h, size_w), lambda b, o, y, x: total[b, o, y * size_w + x].astype(out), name="image"
    )


def legalize_convolution(builder: Any, call: Any) -> Any:
    """relax.nn.conv2d as a product where it is one group of static image size, else as the engine writes it."""
    data, weight = call.args
    attrs = call.attrs
    shapes = [list(each.ty.shape.values) if each.ty.shape is not None else [None] for each in (data, weight)]
    static = all(isinstance(size, tirx.IntImm) for size in (*shapes[0][1:], *shapes[1]))
    plain = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW") and int(attrs.groups) == 1
    if not (static and plain):
        return tvm.ir.Op.get("relax.nn.conv2d").get_attr("FLegalize")(builder, call)
    numbers = [[int(each) for each in values] for values in (attrs.strides, attrs.padding, attrs.dilation)]
    out = str(call.ty.dtype)
    return builder.call_te(
        convolution,
        data,
        weight,
        *numbers,
        out,
        primfunc_name_hint="conv2d",
        primfunc_attrs={"op_pattern": OUT_FUSABLE},
    )
