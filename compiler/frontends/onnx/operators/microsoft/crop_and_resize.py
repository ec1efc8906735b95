"""com.microsoft: CropAndResize, as in TensorFlow's detectors."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, te, tirx

from compiler.frontends.onnx.bounds import limited, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN
from compiler.frontends.onnx.operators.precision import compute_dtype
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression
from schedules.ir.tvm_types import Expr, Tensor


@converter("CropAndResize", domain=DOMAIN)
def crop_and_resize(context: NodeContext) -> relax.Expr:
    """Crops of images (N, C, H, W), resized: boxes (y1, x1, y2, x2) in units of the image, their images, the size.

    The corners of a crop are those of its box; outside of the image is `extrapolation_value`.
    """
    linear = context.choice("mode", "bilinear", ("bilinear", "nearest")) == "bilinear"
    outside = float(context.attribute("extrapolation_value", 0.0))
    boxes = context.shape(1)[0]
    require_shape(context, context.shape(1), [boxes, 4], "the boxes")
    require_shape(context, context.shape(2), [boxes], "the images of the boxes")
    require_values(context, 2, 0, context.shape(0)[0])
    sizes = [expression(size) for size in context.shape_values(3, length=2)]
    operands = [context.input(index) for index in range(3)]
    return context.emit_te(_crops(outside, linear=linear), *operands, *sizes, primfunc_name_hint="crop_and_resize")


def _crops(outside: float, *, linear: bool) -> Callable[..., Tensor]:
    def compute(data: Tensor, boxes: Tensor, images: Tensor, *sizes: Expr) -> Tensor:
        wide = compute_dtype(data.dtype)
        positions = [_positions(boxes, axis, data.shape[axis + 2], sizes[axis], wide) for axis in (0, 1)]
        last = [(size - 1).astype(wide) for size in data.shape[2:]]

        def element(box: Expr, channel: Expr, row: Expr, column: Expr) -> Expr:
            y, x = positions[0](box, row), positions[1](box, column)
            inside = tirx.all(y >= 0, y <= last[0], x >= 0, x <= last[1])
            image = limited(images(box), 0, data.shape[0] - 1)

            def read(y: Expr, x: Expr) -> Expr:
                # Also read for positions outside, whose value is not used.
                indices = (
                    limited(each.astype("int64"), 0, size - 1)
                    for each, size in zip((y, x), data.shape[2:], strict=True)
                )
                return data(image, channel, *indices).astype(wide)

            value = _bilinear(read, y, x) if linear else read(tirx.floor(y + 0.5), tirx.floor(x + 0.5))
            return tirx.Select(inside, value, tirx.const(outside, wide)).astype(data.dtype)

        return te.compute((boxes.shape[0], data.shape[1], *sizes), element, name="crops")

    return compute


def _positions(boxes: Tensor, axis: int, size: Expr, count: Expr, wide: str) -> Tensor:
    """Return the position in the image of each row or column of each crop; the middle of the box for a single one."""

    def element(box: Expr, index: Expr) -> Expr:
        first, end = (boxes(box, side).astype(wide) for side in (axis, axis + 2))
        extent = (size - 1).astype(wide)
        steps = tirx.max(count - 1, 1).astype(wide)
        spread = first * extent + index.astype(wide) * ((end - first) * extent / steps)
        return tirx.Select(count > 1, spread, (first + end) * extent * 0.5)

    return te.compute((boxes.shape[0], count), element, name="positions")


def _bilinear(read: Callable[[Expr, Expr], Expr], y: Expr, x: Expr) -> Expr:
    top, left = tirx.floor(y), tirx.floor(x)
    rows = []
    for row in (top, tirx.ceil(y)):
        begin, end = read(row, left), read(row, tirx.ceil(x))
        rows.append(begin + (end - begin) * (x - left))
    return rows[0] + (rows[1] - rows[0]) * (y - top)
