"""Inputs that hold indices, lengths or counts, and the ranges that PyTorch needs them in.

ONNX counts negative indices from the end wherever there are indices, PyTorch in some operators alone; and where an
index reaches its ONNX operator by way of others, the importer does not see that it is an input. Of indices that a
program computes nothing is checked: the kernels that use them bring them inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_LARGEST_COUNT = 2**62


@dataclass(frozen=True)
class IndexRange:
    """The elements of an input (its node) lie in [least, size); a `least` of None is -size."""

    values: Any
    size: Any
    least: int | None = 0


_Ranges = Callable[[Any], Iterator[IndexRange]]


def index_ranges(node: Any) -> Iterator[IndexRange]:
    """Requirements of a node on tensors that it uses as indices: of those that they are copies of."""
    for each in _OPERATORS.get(str(node.target), _nothing)(node):
        source = _source(each.values)
        if source is not None:
            yield IndexRange(source, each.size, each.least)


_ALIKE = frozenset(
    f"aten.{name}"
    for name in (
        *("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "clone.default", "contiguous.default"),
        *(
            "alias.default",
            "detach.default",
            "detach_.default",
            "view.default",
            "reshape.default",
            "flatten.using_ints",
        ),
        *("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "expand.default", "expand_as.default"),
        *("transpose.int", "permute.default", "t.default", "repeat.default", "lift_fresh_copy.default"),
    )
)
"""Operators whose result has the elements of their first argument, each of them, and no others."""


def _source(node: Any) -> Any:
    """The tensor that this one has all elements of, as integers; None where they are not integers."""
    while getattr(node, "op", None) == "call_function" and str(node.target) in _ALIKE:
        if not _holds_integers(node):
            return None
        node = node.args[0]
    return node if _holds_integers(node) else None


def _holds_integers(node: Any) -> bool:
    value = getattr(node, "meta", {}).get("val")
    return value is not None and hasattr(value, "dtype") and str(value.dtype) in _INTEGERS


_INTEGERS = frozenset({"torch.int64", "torch.int32"})


def _sizes(node: Any) -> Sequence[Any]:
    shape: Sequence[Any] = node.meta["val"].shape
    return shape


def _argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _nothing(node: Any) -> Iterator[IndexRange]:
    yield from ()


def _along(position: int, axis: int, least: int | None = 0) -> _Ranges:
    """Argument `position` chooses along the axis of the first tensor that argument `axis` names."""

    def ranges(node: Any) -> Iterator[IndexRange]:
        sizes, dimension = _sizes(node.args[0]), _argument(node, axis, "dim")
        if sizes and dimension is not None:
            yield IndexRange(node.args[position], sizes[dimension], least)

    return ranges


def _embedding(node: Any) -> Iterator[IndexRange]:
    yield IndexRange(node.args[1], _sizes(node.args[0])[0])


def _bags(node: Any) -> Iterator[IndexRange]:
    """Offsets say where among the indices each bag begins."""
    yield from _embedding(node)
    yield IndexRange(node.args[2], _sizes(node.args[1])[0] + 1)


def _advanced(node: Any) -> Iterator[IndexRange]:
    """Tensors in the place of axes; negative ones count from the end."""
    for size, values in zip(_sizes(node.args[0]), node.args[1], strict=False):
        if values is not None:
            yield IndexRange(values, size, None)


def _take(node: Any) -> Iterator[IndexRange]:
    yield IndexRange(node.args[1], node.args[0].meta["val"].numel(), None)


def _one_hot(node: Any) -> Iterator[IndexRange]:
    classes = _argument(node, 1, "num_classes", -1)
    if isinstance(classes, int) and classes > 0:
        yield IndexRange(node.args[0], classes)


def _repeats(node: Any) -> Iterator[IndexRange]:
    yield IndexRange(node.args[1], _LARGEST_COUNT)


def _unpooled(node: Any) -> Iterator[IndexRange]:
    """Places in the image that comes out."""
    *_, height, width = _sizes(node)
    yield IndexRange(node.args[1], height * width)


def _target(node: Any) -> Iterator[IndexRange]:
    """Classes, and the one number that is none; what lies between them is not told apart."""
    sizes, ignored = _sizes(node.args[0]), _argument(node, 4, "ignore_index", -100)
    if sizes and isinstance(ignored, int):
        yield IndexRange(node.args[1], sizes[1 if len(sizes) > 1 else 0], min(ignored, 0))


_OPERATORS: dict[str, _Ranges] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_bag.default": _bags,
    "aten.embedding_bag.padding_idx": _bags,
    "aten.one_hot.default": _one_hot,
    "aten.index.Tensor": _advanced,
    "aten.index_put.default": _advanced,
    "aten.take.default": _take,
    "aten.nll_loss_nd.default": _target,
    "aten.cross_entropy_loss.default": _target,
    "aten.take_along_dim.default": _along(1, 2),
    "aten.max_unpool2d.default": _unpooled,
    "aten.repeat_interleave.self_Tensor": _repeats,
    "aten.index_fill.int_Scalar": _along(2, 1, None),
    **{
        f"aten.{name}": _along(2, 1)
        for name in (
            *("gather.default", "index_select.default", "index_add.default", "index_copy.default"),
            *("scatter.src", "scatter.value", "scatter.reduce", "scatter.value_reduce"),
            *("scatter_add.default", "scatter_reduce.two"),
        )
    },
}
