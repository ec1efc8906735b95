"""Masks of an image's size from a network's outputs for its frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.frontends.processing.geometry import Axis, axes_of
from compiler.support.processing import Processing

if TYPE_CHECKING:
    from schedules.ir.tvm_types import BlockBuilder, Expr, Stmt, Tensor

_MOST_CLASSES = 256  # in a uint8 mask
_OPAQUE = 8  # TVM's pattern kind of kernels that are never fused


def mask_outputs(model: ImportedModel, processing: Processing, sizes: tuple[str, str]) -> list[TensorSpec]:
    """The outputs of a module that segments: `mask`, and `scores` where the net has one class.

    Args:
        sizes: names of the image's height and width.

    Raises:
        OptionError: the first output is not (1, classes, height, width) of known sizes, or has too many classes; or
            images are cropped.
    """
    raw = model.outputs[0]
    if len(raw.shape) != 4 or raw.shape[0] != 1 or not all(isinstance(each, int) for each in raw.shape):
        raise OptionError(f"processing: {raw} is not a mask of each class: (1, classes, height, width)")
    classes = int(raw.shape[1])
    if classes > _MOST_CLASSES:
        raise OptionError(f"processing: masks have {_MOST_CLASSES} classes at most, and {raw} has {classes}")
    if processing.resize == "crop":
        raise OptionError("processing: what a crop cuts off has no mask", "use resize=stretch, letterbox or fit")
    mask = TensorSpec("mask", sizes, "uint8")
    return [mask, TensorSpec("scores", sizes, "float32")] if classes == 1 else [mask]


def emit_mask(
    builder: BlockBuilder, image: Expr, values: Expr, processing: Processing, size: tuple[int, int]
) -> list[Expr]:
    """The class of each pixel, uint8 (height, width), of values float32 (1, classes, rows, columns) for a frame of
    `size`, which are interpolated linearly before the largest is chosen, as the transformers library and
    mmsegmentation do; of one class the scores too, float32 (height, width)."""
    height, width, _ = image.ty.shape.values
    attributes = {"op_pattern": _OPAQUE}
    if int(values.ty.shape.values[1]) == 1:
        if processing.activation == "sigmoid":
            values = builder.emit(R.sigmoid(values))
        scores = builder.call_te(
            lambda *given: _scores(processing, size, *given),
            *(values, height, width),
            primfunc_name_hint="mask_scores",
            primfunc_attrs=attributes,
        )
        scores = builder.emit(scores)
        above = builder.emit(R.greater_equal(scores, relax.const(processing.score or 0.5, "float32")))
        return [builder.emit(R.astype(above, "uint8")), scores]
    by_pixel = builder.emit(R.permute_dims(values, [0, 2, 3, 1]))
    mask = builder.call_te(
        lambda *given: _classes(processing, size, *given),
        *(by_pixel, height, width),
        primfunc_name_hint="mask",
        primfunc_attrs=attributes,
    )
    return [builder.emit(mask)]


def _place(axis: Axis, count: Expr, position: Expr) -> tuple[Expr, Expr, Expr]:
    """The two neighbours, int64, of a pixel among `count` values along an axis of the frame, and the weight of the
    second, float32; positions outside the frame are clamped to its edge."""
    half = tirx.const(0.5, "float64")
    inside = (_real(position) + half) * _real(axis.resized) / _real(axis.image) - _real(axis.offset)
    place = inside * _real(count) / tirx.const(float(axis.frame), "float64") - half
    place = tirx.max(tirx.min(place, _real(count - 1)), tirx.const(0.0, "float64"))
    low = tirx.Cast("int64", place)
    return low, tirx.min(low + 1, count - 1), tirx.Cast("float32", place - _real(low))


def _real(value: Expr) -> Expr:
    return tirx.Cast("float64", value)


def _scores(processing: Processing, size: tuple[int, int], values: Tensor, height: Expr, width: Expr) -> Tensor:
    vertical, horizontal = axes_of(processing, size, height, width)

    def score(row: Expr, column: Expr) -> Expr:
        top, bottom, down = _place(vertical, values.shape[2], row)
        left, right, over = _place(horizontal, values.shape[3], column)
        one = tirx.const(1.0, "float32")
        upper = values[0, 0, top, left] * (one - over) + values[0, 0, top, right] * over
        lower = values[0, 0, bottom, left] * (one - over) + values[0, 0, bottom, right] * over
        return upper * (one - down) + lower * down

    return te.compute((height, width), score, name="scores")


def _classes(processing: Processing, size: tuple[int, int], values: Tensor, height: Expr, width: Expr) -> Tensor:
    vertical, horizontal = axes_of(processing, size, height, width)
    classes = values.shape[3]

    def body(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source = ins[0]
        with IRBuilder() as builder:
            with T.parallel(0, height) as row, T.serial(0, width) as column, T.seq_scope():
                top, bottom, down = (T.bind(each) for each in _place(vertical, values.shape[1], row))
                left, right, over = (T.bind(each) for each in _place(horizontal, values.shape[2], column))
                best = T.buffer_proxy(T.alloc_buffer([1], "float32", scope="local"))
                which = T.buffer_proxy(T.alloc_buffer([1], "int32", scope="local"))
                best[0], which[0] = tirx.min_value("float32"), tirx.const(0, "int32")
                one = tirx.const(1.0, "float32")
                with T.serial(0, classes) as each, T.seq_scope():
                    upper = source[0, top, left, each] * (one - over) + source[0, top, right, each] * over
                    lower = source[0, bottom, left, each] * (one - over) + source[0, bottom, right, each] * over
                    value = T.bind(upper * (one - down) + lower * down)
                    which[0] = tirx.Select(value > best[0], tirx.Cast("int32", each), which[0])
                    best[0] = tirx.max(best[0], value)
                T.buffer_store(outs[0], tirx.Cast("uint8", which[0]), [row, column])
            return builder.get()

    return te.extern([[height, width]], [values], body, dtype="uint8", name="mask")
