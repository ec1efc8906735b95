"""Weights kept in their quantization blocks, with the matmuls and row look-ups that frontends emit.

A `BlockWeight` is packed while a model is imported, one tensor at a time, in the layout that every kernel reads (see
`schedules.matmul.blocks.expressions`), and never repacked. The kernels compute with exactly the blocks' numbers, except
for many rows on CPUs with AMX, where they are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tvm import relax

from compiler.passes.rewriting.graph import Expr
from compiler.passes.rewriting.matching import Array, as_constant, shared_constant
from schedules.annotations import ELEMENTWISE, FUSABLE, OPAQUE
from schedules.instructions.dot_products.operation import DOT_BF16
from schedules.instructions.rounding import bfloat16_bits
from schedules.matmul.blocks.expressions import (
    FLOATS,
    PANEL,
    BlockFormat,
    block_matmul,
    block_take,
    pack_floats,
    pack_numbers,
    pack_planes,
)
from schedules.matmul.blocks.rounding import block_round
from schedules.matmul.rounded_bf16 import GATES, interleaved, matmul_gated_bf16, matmul_rounded_bf16, rounded_bf16
from schedules.matmul.words import matmul_words

Empty = Callable[[tuple[int, ...], Any], Array]
ACTIVATIONS = ("int8", "float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """A weight (columns, depth); columns are the output features.

    Attributes:
        layout: the storage format of its elements.
        arrays: the packed arrays named in `layout.arrays`.
        order: int64 (depth,), the input feature at each position of the depth; None if in order. For experts
            (experts, depth).
    """

    layout: BlockFormat
    columns: int
    depth: int
    arrays: tuple[Array, ...]
    order: Array | None = None
    _constants: list[Expr] = field(default_factory=list, repr=False)

    @staticmethod
    def of_blocks(layout: BlockFormat, values: Array, numbers: Mapping[str, Array]) -> BlockWeight:
        """Pack a weight given as integers and the numbers of its groups.

        Args:
            layout: an integer format.
            values: uint8 (columns, depth), below 2**bits.
            numbers: by the names of `layout.arrays`, each (columns, groups); the last group may extend past the depth.

        Raises ValueError if shapes do not fit.
        """
        columns, depth = values.shape
        groups = layout.padded_depth(depth) // layout.group
        arrays: list[Array] = [*pack_planes(values, layout)]
        for name in layout.arrays[len(arrays) :]:
            array = numbers[name]
            shared = layout.super_groups if layout.super_groups and not name.endswith("_integers") else 1
            group_count = groups // shared
            if array.shape[0] != columns or not -(-depth // (layout.group * shared)) <= array.shape[1]:
                raise ValueError(f"{name} has shape {array.shape}, for {columns} columns of {group_count} groups")
            padded = np.zeros((columns, group_count), array.dtype)
            padded[:, : array.shape[1]] = array[:, :group_count]
            arrays.append(pack_numbers(padded))
        return BlockWeight(layout, columns, depth, tuple(arrays))

    @staticmethod
    def of_integers(
        values: Array, scales: Array, zeros: Array | None, group: int, bits: int, *, vary: bool = False
    ) -> BlockWeight:
        """Pack a weight scale * (q - zero).

        Args:
            values: unsigned integers below 2**bits as uint8, or signed ones as int8, (columns, depth).
            scales: float16 or float32 (columns, groups).
            zeros: integers of the type of `values`, (columns, groups) or (1, 1); None for 0.
            group: number of neighbors along the depth that share a scale.
            bits: bits per integer, 1 to 8.
            vary: store a zero for each group even if all are equal.
        """
        zero = np.zeros((1, 1), np.int16) if zeros is None else zeros.astype(np.int16)
        if values.dtype == np.int8:
            middle = 1 << (bits - 1)
            values, zero = values.view(np.uint8) + np.uint8(middle), zero + middle
        unit, (scales, zero) = _readable_groups(values.shape[1], group, [_exact_half(scales), zero])
        same = not vary and bool((zero == zero.flat[0]).all())
        if not same and (int(zero.min()) < 0 or int(zero.max()) > 255):
            raise ValueError("zero points must lie in the range of their integers")
        layout = BlockFormat(bits, unit, zero=int(zero.flat[0]) if same else 0, zeros=not same)
        zero = np.broadcast_to(zero, scales.shape)
        return BlockWeight.of_blocks(layout, values, {"scale": scales, "zeros": zero.astype(np.uint8)})

    @staticmethod
    def of_codes(values: Array, scales: Array, group: int, code: str | Sequence[float]) -> BlockWeight:
        """Pack a weight scale * number(q).

        Args:
            values: uint8 (columns, depth).
            scales: float16 or float32 (columns, groups).
            group: see `of_integers`.
            code: the number for each of 0, 1, ..., or one of `FLOATS_OF_8_BITS`, in which case values are its bits.
        """
        unit, (scales,) = _readable_groups(values.shape[1], group, [_exact_half(scales)])
        if isinstance(code, str):
            layout = BlockFormat(8, unit, float8=code)
        else:
            layout = BlockFormat((len(code) - 1).bit_length(), unit, table=tuple(map(float, code)))
        return BlockWeight.of_blocks(layout, values, {"scale": scales})

    @staticmethod
    def of_experts(count: int, columns: int, weights: Iterable[BlockWeight], empty: Empty = np.empty) -> BlockWeight:
        """Concatenate experts' weights of `columns` columns each, zero-padded to full panels."""
        orders = list[Array]()

        def each_weight() -> Iterator[BlockWeight]:
            for weight in weights:
                orders.extend([] if weight.order is None else [weight.order])
                yield weight

        whole = BlockWeight.of_rows(count * -(-columns // PANEL) * PANEL, each_weight(), empty)
        return replace(whole, order=np.stack(orders)) if orders else whole

    @staticmethod
    def of_floats(values: Array, numbers: str) -> BlockWeight:
        """Pack plain numbers (columns, depth), rounded to "bfloat16", "float16" or "float32" if wider; uint16 is
        interpreted as the bits of that type."""
        if numbers not in FLOATS:
            raise ValueError(f"numbers are {', '.join(FLOATS)}, not {numbers}")
        layout = BlockFormat(32 if numbers == "float32" else 16, numbers=numbers)
        if values.dtype == np.uint16 and layout.bits == 16:
            bits: Array = values
        elif numbers == "bfloat16":
            bits = bfloat16_bits(values)
        else:
            bits = np.ascontiguousarray(values.astype(numbers)).view(np.uint16 if layout.bits == 16 else np.uint32)
        columns, depth = values.shape
        return BlockWeight(layout, columns, depth, (pack_floats(bits, layout),))

    @staticmethod
    def joined(weights: Sequence[BlockWeight]) -> BlockWeight:
        """Join weights along their columns. Raises ValueError if they cannot be joined."""
        first = weights[0]
        if not all(each.joins(first) for each in weights):
            raise ValueError("weights of different formats, or whose panels are not full, cannot be joined")
        return BlockWeight.stacked(weights)

    @staticmethod
    def stacked(weights: Sequence[BlockWeight]) -> BlockWeight:
        """Stack weights of equal format and depth; all but the last must have whole panels."""
        first = weights[0]
        if len(weights) == 1:
            return first
        arrays = tuple(np.concatenate(parts) for parts in zip(*(each.arrays for each in weights), strict=True))
        return BlockWeight(first.layout, sum(each.columns for each in weights), first.depth, arrays)

    @staticmethod
    def of_rows(columns: int, parts: Iterable[BlockWeight], empty: Empty = np.empty) -> BlockWeight:
        """Like `stacked`, for parts created one at a time: at most one exists in addition to the result, whose arrays
        `empty` allocates."""
        layout, depth, arrays, start = None, 0, list[Array](), 0
        for part in parts:
            layout, depth = part.layout, part.depth
            panels = len(part.arrays[0])
            if not arrays:
                arrays = [empty((-(-columns // PANEL), *each.shape[1:]), each.dtype) for each in part.arrays]
            for at, array in enumerate(part.arrays):
                if arrays[at].dtype != array.dtype:  # scales outside float16's range
                    arrays[at] = arrays[at].astype(np.promote_types(arrays[at].dtype, array.dtype))
                arrays[at][start : start + panels] = array
            start += panels
        assert layout is not None
        return BlockWeight(layout, columns, depth, tuple(arrays))

    def joins(self, other: BlockWeight) -> bool:
        """True if the two can be joined."""
        full = self.columns % PANEL == 0 and other.columns % PANEL == 0
        types = [each.dtype for each in self.arrays] == [each.dtype for each in other.arrays]
        return full and types and self.layout == other.layout and self.depth == other.depth

    def constants(self) -> list[Expr]:
        """Return the arrays as Relax constants, the same objects at each call."""
        if not self._constants:
            self._constants.extend(shared_constant(each) for each in self.arrays)
        return self._constants

    @property
    def form(self) -> dict[str, object]:
        """Return the arguments of the expressions other than the arrays."""
        return {"columns": self.columns, "depth": self.depth, "layout": self.layout.text()}


def block_product(builder: relax.BlockBuilder, data: Expr, weight: BlockWeight, activations: str = "int8") -> Expr:
    """Multiply float32 data (..., depth) by a weight: float32 (..., columns), emitted.

    Args:
        builder: inside a function.
        data: with any number of rows, also symbolic.
        weight: the weight.
        activations: "int8" quantizes each 32 neighbors (16 if the weight's groups have 16) of the data to bytes with
            their own scale, and accumulates in integers; "bfloat16" rounds them to bfloat16 if the weight is bfloat16;
            "float32" keeps them. Anything inapplicable to a weight's format means "float32".
    """
    if activations not in ACTIVATIONS:
        raise ValueError(f"activations are {' or '.join(ACTIVATIONS)}, not {activations}")
    if activations == "bfloat16" and weight.layout.numbers == "bfloat16":
        return _product_of_rounded(builder, data, weight)
    data = rounded_rows(builder, data, weight, activations)
    return builder.emit(
        builder.call_te(
            block_matmul,
            data,
            *weight.constants(),
            **weight.form,
            primfunc_name_hint="block_matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )
    )


def _product_of_rounded(builder: relax.BlockBuilder, data: Expr, weight: BlockWeight) -> Expr:
    """Multiply bfloat16 operands. Data of even depth are rounded by the kernel that computes them."""
    # The weight is stored as pairs along the depth.
    kernel: Callable[..., Any] = partial(matmul_words, operation=DOT_BF16)
    if weight.depth % 2 == 0:
        kernel, data = matmul_rounded_bf16, _rounded(builder, data)
    pairs, attrs = weight.constants()[0], {"op_pattern": FUSABLE}
    call = builder.call_te(kernel, data, pairs, weight.columns, primfunc_name_hint="matmul", primfunc_attrs=attrs)
    return builder.emit(call)


def _rounded(builder: relax.BlockBuilder, data: Expr) -> Expr:
    attrs = {"op_pattern": ELEMENTWISE}
    return builder.emit(builder.call_te(rounded_bf16, data, primfunc_name_hint="rounded", primfunc_attrs=attrs))


def gates(gate: BlockWeight, up: BlockWeight, activation: str) -> bool:
    """True if `gated_product` accepts these."""
    return (
        activation in GATES
        and gate.layout.numbers == up.layout.numbers == "bfloat16"
        and gate.columns == up.columns
        and gate.columns % PANEL == 0
        and gate.depth % 2 == 0
    )


def gated_product(builder: relax.BlockBuilder, data: Expr, weights: tuple[BlockWeight, BlockWeight], act: str) -> Expr:
    """Compute act(data gate^T) * (data up^T) with operands rounded to bfloat16: float32 (..., columns), emitted.

    Args:
        builder: inside a function.
        data: float32 (..., depth).
        weights: gate and up, as accepted by `gates`.
        act: the activation, one of `GATES`.
    """
    pairs = as_constant(interleaved(*(each.arrays[0] for each in weights)))
    attrs = {"op_pattern": FUSABLE}
    arguments = (_rounded(builder, data), pairs, weights[0].columns, act)
    call = builder.call_te(matmul_gated_bf16, *arguments, primfunc_name_hint="gated_matmul", primfunc_attrs=attrs)
    return builder.emit(call)


def rounded_rows(builder: relax.BlockBuilder, data: Expr, weight: BlockWeight, activations: str) -> Expr:
    """Prepare data (..., depth) for matmuls with a weight: permuted to its order and, for "int8" and integer weights,
    quantized; emitted."""
    if weight.order is not None and weight.order.ndim == 1:
        data = builder.emit(relax.op.take(data, as_constant(weight.order), axis=data.ty.ndim - 1))
    if activations != "int8" or not weight.layout.is_integer:
        return data
    units = weight.layout.padded_depth(weight.depth) // weight.layout.unit
    return builder.emit(
        builder.call_te(
            block_round,
            data,
            units,
            weight.layout.unit,
            primfunc_name_hint="block_round",
            primfunc_attrs={"op_pattern": OPAQUE},
        )
    )


def block_rows(builder: relax.BlockBuilder, positions: Expr, weight: BlockWeight) -> Expr:
    """Look up rows of an embedding (columns, depth): float32 (..., depth) for int32 or int64 positions (...), emitted.

    Positions outside [0, columns) are clamped. Raises ValueError for a weight with its own order.
    """
    if weight.order is not None:
        raise ValueError("the rows of an embedding have no order of their own")
    call = builder.call_te(block_take, positions, *weight.constants(), **weight.form, primfunc_name_hint="block_take")
    return builder.emit(call)


def _readable_groups(depth: int, group: int, numbers: Sequence[Array]) -> tuple[int, list[Array]]:
    """Return a group size that kernels support, and the groups' numbers: groups larger than a step are whole steps;
    smaller ones divide it."""
    unit = group if 32 % group == 0 or group % 32 == 0 else int(np.gcd(group, 32))
    if unit % 4:
        raise ValueError(f"groups of {group} neighbours are not supported: they must be a multiple of 4")
    if unit == group:
        return unit, list(numbers)
    groups = -(-depth // unit)
    return unit, [each if each.size == 1 else np.repeat(each, group // unit, 1)[:, :groups] for each in numbers]


def _exact_half(scales: Array) -> Array:
    """Return scales as float16 if exact, otherwise as float32."""
    wide = scales.astype(np.float32)
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), wide) else wide
