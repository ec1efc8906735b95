"""Embedding bags, repeated elements, ranges, random draws, and tensors partly overwritten along one axis, such as
caches: a single operator that a session can run in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.frontends.torch.decomposition import along_axis, decomposition_of, is_dynamic
from compiler.frontends.torch.own_operators import own_operator, own_operators_supported


@decomposition_of("aten.embedding_bag.padding_idx", "aten.embedding_bag.default")
def _embedding_bag(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Sums (mode 0), means (1) or maxima (2) of the rows of each bag; zeros for an empty bag.

    Offsets are assumed to be sorted, and indices before the first offset are in no bag.
    """
    offsets = offsets[:-1] if include_last_offset else offsets
    positions = torch.arange(indices.shape[0], device=indices.device)
    bags = (positions.unsqueeze(1) >= offsets).sum(1) - 1
    counted = (
        torch.ones_like(indices) if padding_idx is None else (indices != padding_idx % table.shape[0]).to(torch.int64)
    )
    counted = counted * (bags >= 0)
    bags = bags.clamp(min=0)
    sizes = torch.zeros_like(offsets, dtype=torch.int64).index_add(0, bags, counted)
    rows, present = table[indices], (counted != 0).unsqueeze(1)
    if mode == 2:
        lowest = torch.full((offsets.shape[0], table.shape[1]), -torch.inf, dtype=table.dtype)
        targets = bags.unsqueeze(1).expand(rows.shape)
        largest = lowest.scatter_reduce(0, targets, torch.where(present, rows, -torch.inf), "amax")
        return torch.where((sizes > 0).unsqueeze(1), largest, 0.0), bags, sizes, sizes
    rows = torch.where(present, rows if weights is None else rows * weights.unsqueeze(1), 0.0)
    sums = table.new_zeros((offsets.shape[0], table.shape[1])).index_add(0, bags, rows)
    return sums / sizes.clamp(min=1).unsqueeze(1) if mode == 1 else sums, bags, sizes, sizes


@decomposition_of("aten.repeat_interleave.Tensor")
def _repeated_positions(repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    """Source index of each repeated element, for a known total, which the exporter's conversion does not accept."""
    if output_size is None:
        return NotImplemented
    return _positions(repeats, output_size)


@decomposition_of("aten.repeat_interleave.self_Tensor")
def _repeated(values: Tensor, repeats: Tensor, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    if output_size is None or repeats.ndim == 0:
        return NotImplemented
    values, axis = (values.reshape(-1), 0) if dim is None else (values, dim)
    repeats = repeats if repeats.numel() == values.shape[axis] else repeats.expand(values.shape[axis])
    return values.index_select(axis, _positions(repeats, output_size))


def _positions(repeats: Tensor, output_size: int) -> Tensor:
    ends = repeats.cumsum(0)
    return (torch.arange(output_size).unsqueeze(-1) >= ends).sum(-1).to(repeats.dtype)


@decomposition_of("aten.index_copy.default")
def _index_copy(data: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if data.ndim == 0 or index.ndim != 1 or source.ndim != data.ndim:
        return NotImplemented
    return _written(data, index, source, dim)


@decomposition_of("aten.index_put.default")
def _index_put(data: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Index_put along one axis with integer indices; the exporter handles the rest, but only with int64 indices."""
    used = [axis for axis, index in enumerate(indices) if index is not None]
    index = indices[used[0]] if len(used) == 1 else None
    if accumulate or index is None or index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        if all(each is None or each.dtype != torch.int32 for each in indices):
            return NotImplemented
        wide = [each if each is None or each.dtype != torch.int32 else each.long() for each in indices]
        return torch.ops.aten.index_put(data, wide, values, accumulate)
    axis, size = used[0], data.shape[used[0]]
    shape = [*data.shape[:axis], index.shape[0], *data.shape[axis + 1 :]]
    positions = torch.where(index < 0, index + size, index)
    return _written(data, positions, values.expand(shape), axis)


@decomposition_of("aten.unfold_backward.default")
def _unfold_backward(windows: Tensor, shape: Sequence[int], axis: int, size: int, step: int) -> Tensor:
    """Add up windows (..., count, ..., size) of an axis into a tensor of a shape."""
    if not shape:
        return NotImplemented
    axis = axis % len(shape)
    moved = windows.movedim(axis, -1)  # (..., size, count)
    blocks = moved.reshape(-1, size, moved.shape[-1])
    total = torch.nn.functional.fold(blocks, (1, shape[axis]), (1, size), stride=(1, step))
    return total.reshape([*moved.shape[:-2], shape[axis]]).movedim(-1, axis)


@decomposition_of("aten.take_along_dim.default")
def _take_along_axis(values: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """Gather; negative indices count from the end, and other axes of size 1 are broadcast."""
    if dim is None:
        return _take_along_axis(values.reshape(-1), indices.reshape(-1), 0)
    axis = dim % values.ndim
    others = [_without(each.shape, axis) for each in (values, indices)]
    shape = list(torch.broadcast_shapes(*others))  # type: ignore[no-untyped-call]
    expanded = values.expand([*shape[:axis], values.shape[axis], *shape[axis:]])
    places = indices.expand([*shape[:axis], indices.shape[axis], *shape[axis:]])
    return expanded.gather(axis, torch.where(places < 0, places + values.shape[axis], places))


def _without(shape: Sequence[Any], axis: int) -> list[Any]:
    return [size for each, size in enumerate(shape) if each != axis]


@decomposition_of("aten.bincount.default")
def _bincount(values: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """Sums of weights by value; without weights, by the exporter's conversion."""
    if weights is None:
        return NotImplemented
    counts = torch.bincount(values, minlength=minlength)
    summed = weights if weights.is_floating_point() else weights.to(torch.float64)
    return torch.zeros(counts.shape[0], dtype=summed.dtype).index_add(0, values.to(torch.int64), summed)


@decomposition_of("aten.put.default")
def _put(data: Tensor, index: Tensor, values: Tensor, accumulate: bool = False) -> Tensor:
    flat, positions = data.reshape(-1), index.reshape(-1)
    positions = torch.where(positions < 0, positions + flat.shape[0], positions)
    return flat.index_put((positions,), values.reshape(-1), accumulate).reshape(data.shape)


@decomposition_of("aten.index_reduce.default")
def _index_reduce(
    data: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    if data.ndim == 0:
        scattered = _index_reduce(data.reshape(1), 0, index, source.reshape(-1), reduce, include_self=include_self)
        return scattered.reshape(())
    positions = along_axis(index, data.ndim, dim % data.ndim).expand(source.shape)
    if reduce == "mean":
        return _scattered_mean(data, dim, positions, source, include_self)
    return data.scatter_reduce(dim, positions, source, reduce, include_self=include_self)


def _same_sizes(first: Tensor, second: Tensor) -> bool:
    return all(statically_known_true(one == other) for one, other in zip(first.shape, second.shape, strict=True))


def _broadcasts(node: torch.fx.Node) -> bool:
    """True if a node copies values that are broadcast."""
    data, source = [each.meta["val"] for each in node.args[:2] if isinstance(each, torch.fx.Node)]
    return data.ndim != source.ndim or not _same_sizes(data, source)


@decomposition_of("aten.copy.default", condition=_broadcasts)
def _copy(data: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(data.dtype).expand(data.shape)


def _leaves_a_rest(node: torch.fx.Node) -> bool:
    """True if the source is larger than the index."""
    index, source = [each for each in node.args[2:4] if isinstance(each, torch.fx.Node)]
    return not _same_sizes(index.meta["val"], source.meta["val"])


def _scatters_a_corner(operator: torch._ops.OpOverload) -> None:
    """Scatter only the part of the source that the index covers, as PyTorch does; ONNX requires equal sizes."""

    def decomposition(data: Tensor, dim: int, index: Tensor, source: Tensor, *options: Any, **named: Any) -> Any:
        if _same_sizes(index, source):
            return NotImplemented
        covered = source[tuple(slice(size) for size in index.shape)]
        return operator(data, dim, index, covered, *options, **named)

    decomposition_of(str(operator), condition=_leaves_a_rest)(decomposition)


_ATEN = torch.ops.aten
for _operator in (_ATEN.scatter.src, _ATEN.scatter.reduce, _ATEN.scatter_add.default, _ATEN.scatter_reduce.two):
    _scatters_a_corner(_operator)


_REDUCTIONS = {"add": "sum", "multiply": "prod"}  # names of `scatter` and of `scatter_reduce`


@decomposition_of("aten.scatter.reduce")
def _scatter(data: Tensor, dim: int, index: Tensor, source: Tensor, *, reduce: str) -> Tensor:
    return data.scatter_reduce(dim, index, source, _REDUCTIONS[reduce])


@decomposition_of("aten.scatter.value_reduce")
def _scatter_number(data: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    source = torch.full_like(index, value, dtype=data.dtype)
    return data.scatter_reduce(dim, index, source, _REDUCTIONS[reduce])


@decomposition_of("aten.scatter_reduce.two")
def _scatter_reduce(
    data: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Compute the mean, for which the exporter emits a plain ScatterElements."""
    return _scattered_mean(data, dim, index, source, include_self) if reduce == "mean" else NotImplemented


def _scattered_mean(data: Tensor, dim: int, index: Tensor, source: Tensor, include_self: bool) -> Tensor:
    total = data.scatter_reduce(dim, index, source, "sum", include_self=include_self)
    counts = torch.full_like(data, int(include_self)).scatter_add(dim, index, torch.ones_like(source)).clamp(min=1)
    return torch.div(total, counts, rounding_mode=None if data.is_floating_point() else "floor")


@decomposition_of("aten.diagonal_scatter.default")
def _diagonal_scatter(data: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Repeat the diagonal's elements along rows or columns, and select them if column - row is the offset."""
    moved = data.movedim((dim1, dim2), (-2, -1))
    rows, columns = (torch.arange(moved.shape[axis], device=data.device) for axis in (-2, -1))
    on_diagonal = columns - rows.unsqueeze(-1) == offset
    if source.shape[-1] == 0:
        return data.clone()
    axis, positions = (-1, rows) if offset >= 0 else (-2, columns)
    repeated = source.index_select(-1, positions.clamp(max=source.shape[-1] - 1)).unsqueeze(axis)
    return torch.where(on_diagonal, repeated, moved).movedim((-2, -1), (dim1, dim2))


@decomposition_of("aten.as_strided_scatter.default")
def _as_strided_scatter(
    data: Tensor, source: Tensor, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None
) -> Tensor:
    """Write a strided view of contiguous data, as `fill_diagonal_` does."""
    positions: Any = torch.full((), storage_offset or 0, dtype=torch.int64, device=data.device)
    for length, step in zip(size, stride, strict=True):
        positions = positions.unsqueeze(-1) + torch.arange(length, device=data.device) * step
    flat = data.contiguous().reshape(-1)
    return flat.index_put((positions.reshape(-1),), source.reshape(-1)).reshape(data.shape)


@decomposition_of("aten.slice_scatter.default")
def _slice_scatter(
    data: Tensor, source: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Tensor:
    """Write the part from `start` on; its end follows from the written values."""
    if data.is_complex():
        parts = _real_parts(data, source)
        return torch.view_as_complex(torch.slice_scatter(*parts, dim % data.ndim, start, end, step))
    if step != 1 or data.ndim == 0:
        return NotImplemented
    first: Any = 0 if start is None else start
    if isinstance(first, int) and first == 0 and statically_known_true(source.shape[dim] == data.shape[dim]):
        return source.to(data.dtype, copy=True)
    if isinstance(first, int) and first < 0:
        first = first + data.shape[dim]
    if not isinstance(first, int | torch.SymInt) or (isinstance(first, int) and not isinstance(data.shape[dim], int)):
        return NotImplemented
    known = isinstance(first, int) or statically_known_true(first >= 0)
    if not known:  # as in y[-n:]
        begin: Any = first
        begin = torch.full((), begin, dtype=torch.int64)
        first = torch.where(begin < 0, begin + data.shape[dim], begin).clamp(min=0)
    positions: Any = torch.arange(source.shape[dim], device=data.device) + first
    return _written(data, positions, source, dim)


@decomposition_of("aten.select_scatter.default")
def _select_scatter(data: Tensor, source: Tensor, dim: int, index: Any) -> Tensor:
    if data.is_complex():
        return torch.view_as_complex(torch.select_scatter(*_real_parts(data, source), dim % data.ndim, index))
    if not isinstance(index, int) or not isinstance(data.shape[dim], int):
        return NotImplemented
    return _written(
        data,
        torch.full((1,), index % data.shape[dim], dtype=torch.int64, device=data.device),
        source.unsqueeze(dim),
        dim,
    )


def _real_parts(data: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    return torch.view_as_real(data), torch.view_as_real(source.to(data.dtype))


def _written(data: Tensor, positions: Tensor, rows: Tensor, dim: int) -> Tensor:
    if not own_operators_supported():
        return NotImplemented
    operands = (data, positions.to(torch.int64), rows.to(data.dtype))
    return own_operator("WritePlaces", operands, data.dtype, data.shape, axis=dim % data.ndim)


def _counts_in_floats(node: torch.fx.Node) -> bool:
    return any(isinstance(bound, float) for bound in node.args)


@decomposition_of("aten.arange.default", "aten.arange.start", "aten.arange.start_step", condition=_counts_in_floats)
def _arange(*bounds: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Arange of floats, computed in float64; the exporter's conversion counts in the result's dtype."""
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    kinds = {type(each) for each in (start, end, step)}
    if not kinds <= {int, float} or float not in kinds:
        return NotImplemented
    count = max(math.ceil((end - start) / step), 0)
    values = torch.arange(count).to(torch.float64) * step + start
    return values.to(dtype or torch.get_default_dtype())


@decomposition_of("aten.linspace.Tensor_Tensor", "aten.linspace.Tensor_Scalar", "aten.linspace.Scalar_Tensor")
def _only_start(start: Any, end: Any, steps: int, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """A single step, for which torch's decomposition returns a scalar."""
    if not isinstance(steps, int) or steps != 1:
        return NotImplemented
    dtype = dtype or torch.get_default_dtype()
    return start.to(dtype).reshape(1) if isinstance(start, Tensor) else torch.full((1,), start, dtype=dtype)


@decomposition_of("aten.logspace.Tensor_Tensor", "aten.logspace.Tensor_Scalar", "aten.logspace.Scalar_Tensor")
def _only_power(start: Any, end: Any, steps: int, base: float = 10.0, **options: Any) -> Tensor:
    exponent = _only_start(start, end, steps, **options)
    return NotImplemented if exponent is NotImplemented else torch.pow(base, exponent)


@decomposition_of("aten.multinomial.default")
def _multinomial(weights: Tensor, num_samples: int, replacement: bool = False, *, generator: object = None) -> Tensor:
    """Draw without replacement: the largest of log(weight) plus Gumbel noise. The exporter draws with replacement."""
    if replacement or num_samples == 1:
        return NotImplemented
    noise = -torch.log(-torch.log(torch.rand_like(weights).clamp(min=torch.finfo(weights.dtype).tiny)))
    return (weights.log() + noise).topk(num_samples, -1)[1]


def _rolls_by_symbols(node: torch.fx.Node) -> bool:
    """True if a shift is computed from dynamic sizes, for which the ONNX exporter supports only one at a time."""
    return any(isinstance(shift, torch.fx.Node) for shift in _listed(node.args[1]))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@decomposition_of("aten.roll.default", condition=_rolls_by_symbols)
def _roll(values: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    """Roll along one axis after another by index: slices of computed sizes would add guards against sizes of 1."""
    steps, axes = _listed(shifts), _listed(dims)
    if not axes:
        return _roll(values.flatten(), steps, [0]).reshape(values.shape)
    for step, axis in zip(steps, axes, strict=True):
        size = values.shape[axis]
        values = values.index_select(axis, torch.remainder(torch.arange(size) - step, torch.full((), size)))
    return values


def _shifts_dynamic_sizes(node: torch.fx.Node) -> bool:
    (source, *_) = node.all_input_nodes
    return is_dynamic(source.meta["val"].shape)


@decomposition_of("aten.fft_fftshift.default", condition=_shifts_dynamic_sizes)
def _fftshift(values: Tensor, dim: Any = None) -> Tensor:
    """Swap the halves; the first half is the longer one."""
    axes = list(range(values.ndim)) if dim is None else _listed(dim)
    return _roll(values, [values.shape[axis] // 2 for axis in axes], axes)


@decomposition_of("aten.fft_ifftshift.default", condition=_shifts_dynamic_sizes)
def _ifftshift(values: Tensor, dim: Any = None) -> Tensor:
    axes = list(range(values.ndim)) if dim is None else _listed(dim)
    return _roll(values, [-(values.shape[axis] // 2) for axis in axes], axes)


def _named_axes(rank: int, dims: Any) -> list[int]:
    """Return the named axes, or all."""
    named = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    return [axis % rank for axis in named] if rank else []


def _keeps_axes(node: torch.fx.Node) -> bool:
    """True if a named axis has another size than 1, which ONNX refuses, or if the sizes of unnamed ones are dynamic."""
    values, *dims = node.args
    sizes = values.meta["val"].shape  # type: ignore[union-attr]
    if not dims:
        return is_dynamic(sizes)
    return any(not _is_one(sizes[axis]) for axis in _named_axes(len(sizes), dims[0]))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


@decomposition_of("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", condition=_keeps_axes)
def _squeeze(values: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    """Remove the axes of size 1 only; dynamic sizes are at least 2."""
    named = _named_axes(values.ndim, dims)
    removed = sorted(axis for axis in named if _is_one(values.shape[axis]))
    if len(named) == len(removed) == 1:
        return NotImplemented
    for axis in reversed(removed):
        values = values.squeeze(axis)
    return values if removed else values.clone()
