"""Relations of sizes required by PyTorch, but not by the ONNX operators of the exported program.

An ONNX Slice is clamped to its tensor, and an empty reduction has a value; PyTorch rejects both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from compiler.frontends.onnx.size_checks import Relation
from compiler.frontends.torch.recurrent_layers import OPERATORS as RECURRENT_LAYERS


class SizeRelation(NamedTuple):
    """A relation of two sizes: numbers, or symbolic ones of `torch.export`."""

    left: Any
    relation: Relation
    right: Any


_Relations = Callable[[Any], Iterator[SizeRelation]]


def size_relations(node: Any) -> Iterator[SizeRelation]:
    """Yield a node's requirements on the sizes of its tensors."""
    yield from _OPERATORS.get(str(node.target), _nothing)(node)


def _nothing(node: Any) -> Iterator[SizeRelation]:
    yield from ()


def _value(argument: Any) -> Any:
    """Return an argument, or the value of a size node."""
    return argument.meta["val"] if hasattr(argument, "meta") else argument


def sizes_of(node: Any) -> Sequence[Any]:
    """Return the sizes of a node's tensor."""
    shape: Sequence[Any] = node.meta["val"].shape
    return shape


def _argument(node: Any, position: int, name: str, default: object = None) -> Any:
    return _value(node.args[position] if len(node.args) > position else node.kwargs.get(name, default))


def _narrow(node: Any) -> Iterator[SizeRelation]:
    axis, start, length = (_value(each) for each in node.args[1:4])
    size = sizes_of(node.args[0])[axis]
    if not isinstance(start, int) or start >= 0:
        yield SizeRelation(size, "at least", start + length)
    else:
        yield SizeRelation(size, "at least", -start)


def _unfold(node: Any) -> Iterator[SizeRelation]:
    axis, length = (_value(each) for each in node.args[1:3])
    if sizes := sizes_of(node.args[0]):
        yield SizeRelation(sizes[axis], "at least", length)


def _pad(node: object) -> Iterator[SizeRelation]:
    """Reflection padding is smaller than the size, circular padding at most the size."""
    mode = _argument(node, 2, "mode", "constant")
    if mode in ("reflect", "circular"):
        yield from _at_least_pads(node, 1 if mode == "reflect" else 0)


def _reflection(node: object) -> Iterator[SizeRelation]:
    yield from _at_least_pads(node, 1)


def _at_least_pads(node: Any, more: int) -> Iterator[SizeRelation]:
    pads = [_value(each) for each in node.args[1]]
    for index in range(0, len(pads), 2):
        size = sizes_of(node.args[0])[-1 - index // 2]
        yield from (SizeRelation(size, "at least", pad + more) for pad in pads[index : index + 2])


def _not_empty(node: Any) -> Iterator[SizeRelation]:
    """Require elements along the reduced axes, or along all axes by default."""
    sizes = sizes_of(node.args[0])
    axes = _argument(node, 1, "dim")
    named = list(axes) if isinstance(axes, list | tuple) else [axes] if isinstance(axes, int) else []
    for axis in named or range(len(sizes)):
        if sizes:
            yield SizeRelation(sizes[axis], "at least", 1)


def _kth(node: Any) -> Iterator[SizeRelation]:
    sizes = sizes_of(node.args[0])
    if sizes:
        yield SizeRelation(sizes[_argument(node, 2, "dim", -1)], "at least", _value(node.args[1]))


def _spatial(axes: int) -> _Relations:
    """Require elements along the last axes of the first tensor."""

    def relations(node: Any) -> Iterator[SizeRelation]:
        for size in sizes_of(node.args[0])[-axes:]:
            yield SizeRelation(size, "at least", 1)

    return relations


def _resized(axes: int) -> _Relations:
    """Require elements along the last axes of the first tensor and of the result."""

    def relations(node: Any) -> Iterator[SizeRelation]:
        for size in (*sizes_of(node.args[0])[-axes:], *sizes_of(node)[-axes:]):
            yield SizeRelation(size, "at least", 1)

    return relations


def _columns(node: Any) -> Iterator[SizeRelation]:
    """Require that a window fits into the image."""
    kernel, dilation, padding = node.args[1:4]
    for size, each, step, pad in zip(sizes_of(node.args[0])[-2:], kernel, dilation, padding, strict=True):
        yield SizeRelation(size, "at least", step * (each - 1) + 1 - 2 * pad)


def _image_of_columns(node: Any) -> Iterator[SizeRelation]:
    """Require channels of one or more whole windows."""
    height, width = node.args[2]
    channels = sizes_of(node.args[0])[-2]
    yield SizeRelation(channels, "at least", height * width)
    yield SizeRelation(channels % (height * width), "equal", 0)


def _halves(node: Any) -> Iterator[SizeRelation]:
    yield SizeRelation(sizes_of(node.args[0])[_argument(node, 1, "dim", -1)] % 2, "equal", 0)


def _instances(node: Any) -> Iterator[SizeRelation]:
    """Require more than one element for statistics."""
    elements = 1
    for size in sizes_of(node.args[0])[2:]:
        elements = elements * size
    yield SizeRelation(elements, "at least", 2)


def _steps(node: Any) -> Iterator[SizeRelation]:
    """Require a nonempty sequence; the argument before the last is batch_first."""
    sizes = sizes_of(node.args[0])
    if len(sizes) == 3:
        yield SizeRelation(sizes[1 if node.args[-1] else 0], "at least", 1)


_OPERATORS: dict[str, _Relations] = {
    "aten.narrow.default": _narrow,
    "aten.unfold.default": _unfold,
    "aten.pad.default": _pad,
    **{f"aten.reflection_pad{axes}d.default": _reflection for axes in (1, 2, 3)},
    **{f"aten.{name}": _not_empty for name in ("max.dim", "min.dim", "amax.default", "amin.default", "mode.default")},
    **{f"aten.{name}": _not_empty for name in ("argmax.default", "argmin.default", "max.default", "min.default")},
    **{f"aten.{name}": _not_empty for name in ("median.dim", "nanmedian.dim", "aminmax.default")},
    "aten.kthvalue.default": _kth,
    "aten.topk.default": _kth,
    **{f"aten.adaptive_{kind}_pool{axes}d.default": _spatial(axes) for kind in ("avg", "max") for axes in (1, 2, 3)},
    "aten.grid_sampler.default": _spatial(2),
    **{f"aten.grid_sampler_{axes}d.default": _spatial(axes) for axes in (2, 3)},
    **{f"aten.upsample_nearest{axes}d.vec": _resized(axes) for axes in (1, 2, 3)},
    **{
        f"aten.upsample_{kind}.vec": _resized(axes)
        for kind, axes in (("linear1d", 1), ("bilinear2d", 2), ("bicubic2d", 2), ("trilinear3d", 3))
    },
    "aten.im2col.default": _columns,
    "aten.col2im.default": _image_of_columns,
    "aten.glu.default": _halves,
    "aten.instance_norm.default": _instances,
    **{f"aten.{name}.input": _steps for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **dict.fromkeys(RECURRENT_LAYERS, _steps),
}
