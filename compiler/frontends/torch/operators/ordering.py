"""Minima, maxima, medians and sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import along_axis, decomposition_of, is_dynamic
from compiler.frontends.torch.own_operators import own_operator, own_operators_supported


@decomposition_of("aten.sort.default")
def _sort(values: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Sort booleans as integers: ONNX's TopK accepts only numbers."""
    if values.dtype != torch.bool:
        return NotImplemented
    found, positions = values.to(torch.uint8).sort(dim, descending)
    return found.to(torch.bool), positions


@decomposition_of("aten.sort.stable")
def _stable_sort(
    values: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Stable sort: ONNX's TopK keeps the order of equal elements."""
    return _sort(values, dim, descending) if values.dtype == torch.bool else values.sort(dim, descending)


@decomposition_of("aten.argsort.stable")
def _stable_argsort(values: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    return _stable_sort(values, stable=stable, dim=dim, descending=descending)[1]


@decomposition_of("aten.amax.default")
def _amax(values: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return NotImplemented if dim else _over_all_axes(Tensor.amax, values, keepdim)


@decomposition_of("aten.amin.default")
def _amin(values: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return NotImplemented if dim else _over_all_axes(Tensor.amin, values, keepdim)


def _over_all_axes(reduction: Callable[..., Tensor], values: Tensor, keepdim: bool) -> Tensor:
    """Name all axes, as the exporter's conversion of reductions requires."""
    return reduction(values, list(range(values.ndim)), keepdim) if values.ndim else values.clone()


@decomposition_of("aten.kthvalue.default")
def _kthvalue(values: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if values.ndim == 0:
        return values.clone(), values.new_zeros((), dtype=torch.int64)
    found, indices = values.topk(k, dim, largest=False)
    found, indices = found.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return (found, indices) if keepdim else (found.squeeze(dim), indices.squeeze(dim))


@decomposition_of("aten.median.dim")
def _median_of_axis(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _kthvalue(values, _middle(values.shape[dim] if values.ndim else 1), dim, keepdim)


@decomposition_of("aten.median.default")
def _median(values: Tensor) -> Tensor:
    flat = values.reshape(-1)
    return _kthvalue(flat, _middle(flat.shape[0]))[0]


def _middle(size: int) -> int:
    """Return the position of the median, the lower one of two, counted from 1."""
    return (size + 1) // 2


@decomposition_of("aten.aminmax.default")
def _aminmax(values: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = list(range(values.ndim)) if dim is None else [dim]
    return values.amin(axes, keepdim), values.amax(axes, keepdim)


@decomposition_of("aten.cummax.default")
def _cummax(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running(values, dim, lambda own, earlier: own >= earlier, "RunningArgMax")


@decomposition_of("aten.cummin.default")
def _cummin(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running(values, dim, lambda own, earlier: own <= earlier, "RunningArgMin")


def _running(
    values: Tensor, dim: int, keeps: Callable[[Tensor, Tensor], Tensor], operator: str
) -> tuple[Tensor, Tensor]:
    """Compare each element with those 1, 2, 4, ... positions before it; ties go to the later element, NaN to the last.

    An axis of dynamic size uses the custom `operator`.
    """
    if values.ndim == 0:
        return values.clone(), values.new_zeros((), dtype=torch.int64)
    size = _size(values, dim)
    if not isinstance(size, int):
        found = _own(operator, values, dim, torch.int64)
        return found if found is NotImplemented else (values.gather(dim, found), found)
    indices = along_axis(torch.arange(size), values.ndim, dim % values.ndim).expand(values.shape)
    step = 1
    while step < size:
        current, earlier = values.narrow(dim, step, size - step), values.narrow(dim, 0, size - step)
        replaces = keeps(current, earlier) | current.isnan()
        parts = values.narrow(dim, 0, step), torch.where(replaces, current, earlier)
        positions = indices.narrow(dim, step, size - step), indices.narrow(dim, 0, size - step)
        indices = torch.cat([indices.narrow(dim, 0, step), torch.where(replaces, *positions)], dim)
        values, step = torch.cat(parts, dim), 2 * step
    return values, indices


@decomposition_of("aten.cumprod.default")
def cumprod(values: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Cumulative product by doubling: the product of the last 1, 2, 4, ... elements times the one that ends before
    it."""
    size = _size(values, dim)
    floats = values.is_floating_point() or values.is_complex()
    result = values.to(dtype or (values.dtype if floats else torch.int64))
    if not isinstance(size, int):
        return NotImplemented if values.is_complex() else _own("CumProd", result, dim, result.dtype)
    step = 1
    while step < size:
        rest = result.narrow(dim, step, size - step) * result.narrow(dim, 0, size - step)
        result, step = torch.cat([result.narrow(dim, 0, step), rest], dim), 2 * step
    return result


def _size(values: Tensor, dim: int) -> Any:
    """Return an int, or a symbol if dynamic."""
    return values.shape[dim] if values.ndim else 1


def _own(operator: str, values: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Emit an operator of `TORCH_DOMAIN` along an axis."""
    if not own_operators_supported():
        return NotImplemented
    return own_operator(operator, [values], dtype, values.shape, axis=dim % values.ndim)


@decomposition_of("aten.mode.default")
def _mode(values: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the most frequent element, the smallest of several, and its last index."""
    if values.ndim == 0:
        return values.clone(), values.new_zeros((), dtype=torch.int64)
    moved = values.movedim(dim, -1)
    counts = (moved.unsqueeze(-1) == moved.unsqueeze(-2)).sum(-1)
    commonest = counts == counts.amax(-1, keepdim=True)
    largest = moved.amax(-1, keepdim=True)
    commonest_value = torch.where(commonest, moved, largest).amin(-1, keepdim=True)
    positions = torch.where(moved == commonest_value, torch.arange(moved.shape[-1]), -1).amax(-1, keepdim=True)
    commonest_value, positions = commonest_value.movedim(-1, dim), positions.movedim(-1, dim)
    return (commonest_value, positions) if keepdim else (commonest_value.squeeze(dim), positions.squeeze(dim))


@decomposition_of("aten.nanmedian.dim")
def _nanmedian_of_axis(values: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Median of the elements that are not NaN; NaN if all are."""
    ordered, positions = values.nan_to_num(float("inf"), float("inf"), float("-inf")).sort(dim)
    count = (~values.isnan()).sum(dim, keepdim=True)
    middle = ((count + 1) // 2 - 1).clamp(min=0)
    median, index = ordered.gather(dim, middle), positions.gather(dim, middle)
    median = torch.where(count == 0, float("nan"), median)
    return (median, index) if keepdim else (median.squeeze(dim), index.squeeze(dim))


@decomposition_of("aten.nanmedian.default")
def _nanmedian(values: Tensor) -> Tensor:
    return _nanmedian_of_axis(values.reshape(-1), 0)[0]


@decomposition_of("aten.searchsorted.Tensor")
def _searchsorted(
    ordered: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Return the insertion position of each value: the number of smaller elements, or with `right`, smaller or equal
    ones."""
    if sorter is not None:
        ordered = ordered.gather(-1, sorter)
    boundaries, targets = ordered.unsqueeze(-2) if ordered.ndim > 1 else ordered, values.unsqueeze(-1)
    precedes = boundaries <= targets if right or side == "right" else boundaries < targets
    if ordered.is_floating_point():
        precedes = precedes | boundaries.isnan() | targets.isnan()  # torch continues past incomparable elements
    return precedes.sum(-1).to(torch.int32 if out_int32 else torch.int64)


@decomposition_of("aten.searchsorted.Scalar")
def _searchsorted_number(
    ordered: Tensor,
    value: float,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    number = torch.full((), value, dtype=torch.result_type(ordered, value))
    return _searchsorted(ordered, number, out_int32=out_int32, right=right, side=side, sorter=sorter)


def _is_not_decomposed_by_torch(node: torch.fx.Node) -> bool:
    values, boundaries = node.args[0], node.args[1]
    if not isinstance(values, torch.fx.Node) or not isinstance(boundaries, torch.fx.Node):
        return False
    return values.meta["val"].ndim == 0 or is_dynamic(boundaries.meta["val"].shape)


@decomposition_of("aten.bucketize.Tensor", condition=_is_not_decomposed_by_torch)
def _bucketize(values: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Count the boundaries below; torch's own decomposition fixes their number and fails for a single value."""
    if values.ndim and not is_dynamic(boundaries.shape):
        return NotImplemented
    return _searchsorted(boundaries, values, out_int32=out_int32, right=right)


@decomposition_of("aten.isin.Tensor_Tensor")
def _isin(elements: Tensor, tests: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    found = (elements.unsqueeze(-1) == tests.reshape(-1)).any(-1)
    return ~found if invert else found
