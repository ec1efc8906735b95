"""Geometry of sliding windows, shared by convolutions and poolings: kernel, strides, dilations, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax, topi

from compiler.frontends.onnx.broadcasting import in_float32
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.symbolic import Arithmetic, Dim
from compiler.frontends.onnx.values import Constant, tensor_shape
from compiler.passes.layout.windows import SAME
from schedules.ir.tvm_types import Index, Tensor

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes; one entry per axis.

    `before` and `after` are the padding, which with automatic padding depends on the sizes (and may be an expression);
    `output` is the number of positions. In ceiling mode the last position may extend beyond the padding.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]
    output: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def extents(self) -> tuple[int, ...]:
        """The kernel's size including dilation."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def has_static_padding(self) -> bool:
        """True if the padding is known at compile time, so that it can be an operator's attribute."""
        return all(isinstance(p, int) for p in (*self.before, *self.after))

    def overhang(self, arithmetic: Arithmetic, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
        """Return the distance by which the last window extends beyond the padded input, along each axis."""
        reach = []
        for axis, size in enumerate(sizes):
            padded = arithmetic.add(arithmetic.add(size, self.before[axis]), self.after[axis])
            last = arithmetic.multiply(arithmetic.subtract(self.output[axis], 1), self.strides[axis])
            reach.append(arithmetic.maximum(arithmetic.subtract(arithmetic.add(last, self.extents[axis]), padded), 0))
        return tuple(reach)


def integers_attribute(context: NodeContext, name: str, count: int, default: int, minimum: int) -> tuple[int, ...]:
    """Return an attribute of `count` integers, each at least `minimum`; all `default` if missing."""
    values: list[Index] = context.attribute(name, [default] * count)
    if len(values) != count or any(v < minimum for v in values):
        context.invalid(f"{name} must hold {count} integers of at least {minimum}, not {list(values)}")
    return tuple(int(v) for v in values)


def spatial_rank(context: NodeContext, index: int = 0, *, minimum: int = 1) -> int:
    """Return the number of axes after batch and channel of input `index`."""
    rank = context.rank(index) - 2
    if rank < minimum:
        context.invalid(f"its input {index} has rank {rank + 2}; {minimum + 2} is the least")
    return rank


def kernel_attribute(context: NodeContext, rank: int) -> tuple[int, ...]:
    """Return the required attribute kernel_shape of a pooling."""
    context.required_attribute("kernel_shape")
    return integers_attribute(context, "kernel_shape", rank, 1, 1)


def auto_pad(context: NodeContext) -> str:
    """Return the attribute auto_pad; InvalidModelError for unknown values."""
    return context.choice("auto_pad", "NOTSET", ("", *AUTO_PADS)) or "NOTSET"


def window_of(
    context: NodeContext, kernel: tuple[int, ...], sizes: Sequence[Dim], *, ceil_mode: bool = False
) -> Window:
    """Return the window described by a node's attributes for an input of those spatial sizes."""
    rank = len(kernel)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    dilations = integers_attribute(context, "dilations", rank, 1, 1)
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    mode = auto_pad(context)
    axes = []
    for axis, size in enumerate(sizes):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        explicit = (pads[axis], pads[axis + rank]) if mode == "NOTSET" else (0, 0)
        if mode.startswith("SAME"):
            axes.append(_same(context.arithmetic, size, extent, strides[axis], upper=mode == "SAME_UPPER"))
        else:
            axes.append(_explicit(context, size, extent, strides[axis], explicit, ceil_mode))
    before, after, output = zip(*axes, strict=True)
    return Window(kernel, strides, dilations, before, after, output)


def _same(arithmetic: Arithmetic, size: Dim, extent: int, stride: int, *, upper: bool) -> tuple[Dim, Dim, Dim]:
    """Return padding for an output of ceil(size / stride); the odd element goes after the data (upper) or before it."""
    output = arithmetic.ceil_divide(size, stride)
    if stride == 1 or extent == 1:
        total: Dim = extent - 1  # independent of the size, which may be symbolic
    else:
        last = arithmetic.multiply(arithmetic.subtract(output, 1), stride)
        total = arithmetic.subtract(arithmetic.add(last, extent), size)
        if extent < stride:  # else it is non-negative, and last + extent stays a short expression
            total = arithmetic.maximum(total, 0)
    half = arithmetic.floor_divide(total, 2)
    rest = arithmetic.subtract(total, half)
    return (half, rest, output) if upper else (rest, half, output)


def _explicit(
    context: NodeContext, size: Dim, extent: int, stride: int, pads: tuple[int, int], ceil_mode: bool
) -> tuple[Dim, Dim, Dim]:
    arithmetic = context.arithmetic
    free = arithmetic.add(size, sum(pads) - extent)
    output = arithmetic.add(arithmetic.floor_divide(free, stride), 1)
    if not ceil_mode:
        if isinstance(free, int) and free < (-1 if stride == 1 else 0):
            context.invalid(f"a window of extent {extent} does not fit a padded size of {free + extent}")
        if stride > 1:  # runtimes disagree whether zero windows give zero outputs or one
            context.importer.builder.require(free, "at least", 0)
    if ceil_mode:
        rounded = arithmetic.add(arithmetic.ceil_divide(free, stride), 1)
        if isinstance(rounded, int) and rounded < 0:
            context.invalid(f"a window of extent {extent} does not fit a padded size of {size + sum(pads)}")
        if starts_in_data(pads[1], stride, extent):
            return (*pads, rounded)
        # A window that would start in the padding is omitted.
        start = arithmetic.multiply(arithmetic.subtract(rounded, 1), stride)
        output = arithmetic.select(arithmetic.less(start, arithmetic.add(size, pads[0])), rounded, output)
    return (*pads, output)


def starts_in_data(after: int, stride: int, extent: int) -> bool:
    """True if in ceiling mode no window starts in the padding after the data, for any size of the data."""
    return after + stride <= extent


def padded(
    context: NodeContext,
    data: relax.Expr,
    before: Sequence[Dim],
    after: Sequence[Dim],
    value: Index,
    mode: str = "NOTSET",
) -> relax.Expr:
    """Pad the spatial axes of data by sizes that may be expressions; negative ones crop.

    Padding from an auto_pad (`mode`) of SAME is marked, so that windows can do the padding themselves.
    """
    if all(isinstance(p, int) and p == 0 for p in (*before, *after)):
        return data
    value = context.literal(value, str(data.ty.dtype)) if isinstance(value, (int, float)) else value
    widths = [*before, *after]
    attributes = {SAME: mode.removeprefix("SAME_").lower()} if mode.startswith("SAME") else {}

    def pad(tensor: Tensor, fill: Tensor, *sizes: Index) -> Tensor:
        rank = len(sizes) // 2
        return topi.nn.pad(tensor, [0, 0, *sizes[:rank]], [0, 0, *sizes[rank:]], fill(), name="padded")

    return in_float32(
        context,
        lambda tensor, fill: context.emit_te(
            pad, tensor, fill, *widths, primfunc_name_hint="pad_spatial", primfunc_attrs=attributes
        ),
        data,
        value,
    )


def per_channel(context: NodeContext, index: int, rank: int) -> relax.Expr:
    """Return input `index`, one value per channel, reshaped to (1, C, 1, ...) to broadcast over a tensor of that
    rank."""
    value = context.tensor(index)
    if len(value.shape) != 1:
        context.invalid(f"its input {index} must have rank 1, not {len(value.shape)}")
    shape = (1, value.shape[0], *[1] * (rank - 2))
    if isinstance(value, Constant):
        return Constant(value.array.reshape(shape), value.dtype).expr()
    return context.reshape(context.input(index), shape)


def spatial_sizes(expr: relax.Expr) -> tuple[Dim, ...]:
    """Return the sizes after batch and channel."""
    return tensor_shape(expr)[2:]
