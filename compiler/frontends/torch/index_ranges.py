"""What PyTorch needs of inputs that hold indices, lengths or counts: ranges that are checked before a run.

ONNX counts negative indices from the end wherever there are indices, PyTorch in some operators alone; and where an
index reaches its ONNX operator by way of others, the importer does not see that it is an input. Of indices that a
program computes nothing is checked: the kernels that use them bring them inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.frontends.imported_model import ImportedModel, IndexRequirement
from compiler.profiling.formula import evaluate, names_in

if TYPE_CHECKING:
    import torch

_LARGEST_COUNT = 2**62


@dataclass(frozen=True)
class _Range:
    """The elements of a tensor (a node of the graph) lie in [least, size); a `least` of None is -size."""

    values: Any
    size: Any
    least: int | None = 0


_Ranges = Callable[[Any], Iterator[_Range]]


class IndexRanges:
    """The ranges that a program's inputs must lie in; taken before its operators are rewritten."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        inputs = set(program.graph_signature.user_inputs)
        self._places: dict[str, tuple[str, int]] = {}
        self._found: list[tuple[str, _Range, str]] = []
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
                    self._places.setdefault(str(size), (node.name, axis))
            for each in _OPERATORS.get(str(node.target), _nothing)(node):
                source = _source(each.values)
                if source is not None and source.name in inputs:
                    self._found.append((source.name, each, f"{_operator(node)} {node.name!r}"))

    def added_to(self, model: ImportedModel) -> ImportedModel:
        """The model with these before its own; not those of inputs or of sizes that it does not have."""
        shapes = {spec.name: spec.shape for spec in model.inputs}
        kept: dict[tuple[str, str, str | None], IndexRequirement] = {}
        for name, values, where in self._found:
            formula = self._formula(str(values.size), shapes) if name in shapes else None
            if formula is not None:
                least = None if values.least is None else str(values.least)
                kept.setdefault((name, formula[0], least), IndexRequirement(name, *formula, where, least))
        for own in model.indices:
            if (own.input, own.size, "0") not in kept:  # that is the narrower one
                kept.setdefault((own.input, own.size, own.least), own)
        return replace(model, indices=tuple(kept.values())) if self._found else model

    def _formula(self, text: str, shapes: Mapping[str, Sequence[int | str]]) -> tuple[str, dict[str, str]] | None:
        """A size as a formula and the dimensions that its names stand for; None where it is not one of inputs' sizes.

        The number takes the place of the name of a dimension that the caller fixed.
        """
        symbols: dict[str, str] = {}
        try:
            for name in names_in(text):
                if name not in self._places or self._places[name][0] not in shapes:
                    return None
                place, axis = self._places[name]
                dimension = shapes[place][axis]
                if isinstance(dimension, int):
                    text = re.sub(rf"\b{name}\b", str(dimension), text)
                else:
                    symbols[name] = dimension
            evaluate(text, dict.fromkeys(symbols, 1))
        except ValueError:
            return None
        return text, symbols


def _operator(node: Any) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


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
    """The tensor that this one has all elements of, as integers; None where they are no integers."""
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


def _nothing(node: Any) -> Iterator[_Range]:
    yield from ()


def _along(position: int, axis: int, least: int | None = 0) -> _Ranges:
    """Argument `position` chooses along the axis of the first tensor that argument `axis` names."""

    def ranges(node: Any) -> Iterator[_Range]:
        sizes, dimension = _sizes(node.args[0]), _argument(node, axis, "dim")
        if sizes and dimension is not None:
            yield _Range(node.args[position], sizes[dimension], least)

    return ranges


def _embedding(node: Any) -> Iterator[_Range]:
    yield _Range(node.args[1], _sizes(node.args[0])[0])


def _bags(node: Any) -> Iterator[_Range]:
    """Offsets say where among the indices each bag begins."""
    yield from _embedding(node)
    yield _Range(node.args[2], _sizes(node.args[1])[0] + 1)


def _advanced(node: Any) -> Iterator[_Range]:
    """Tensors in the place of axes; negative ones count from the end."""
    for size, values in zip(_sizes(node.args[0]), node.args[1], strict=False):
        if values is not None:
            yield _Range(values, size, None)


def _take(node: Any) -> Iterator[_Range]:
    yield _Range(node.args[1], node.args[0].meta["val"].numel(), None)


def _one_hot(node: Any) -> Iterator[_Range]:
    classes = _argument(node, 1, "num_classes", -1)
    if isinstance(classes, int) and classes > 0:
        yield _Range(node.args[0], classes)


def _repeats(node: Any) -> Iterator[_Range]:
    yield _Range(node.args[1], _LARGEST_COUNT)


def _unpooled(node: Any) -> Iterator[_Range]:
    """Places in the image that comes out."""
    *_, height, width = _sizes(node)
    yield _Range(node.args[1], height * width)


_OPERATORS: dict[str, _Ranges] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_bag.default": _bags,
    "aten.embedding_bag.padding_idx": _bags,
    "aten.one_hot.default": _one_hot,
    "aten.index.Tensor": _advanced,
    "aten.index_put.default": _advanced,
    "aten.take.default": _take,
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
