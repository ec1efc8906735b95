"""store-palettes and store-scaled-integers: store weights in an exact smaller form and restore them bit for bit when
the module is loaded, after any packing or transformation. Nothing is rounded.

- Weights with few distinct values, as from `share_weights`: a palette, and a code of a few bits for each weight.
- Weights that are int8 integers times a scale per output channel, as from weight-only quantization (or training with
  rounding): the integers and scales.

expand-at-load: compute constants larger than the tensors they are computed from when the module is loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst, IRModule

from compiler.artifact.entries import EXPAND_ENTRY
from compiler.passes.context import PipelineContext
from compiler.passes.memory.lift_parameters import constants_of
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ArrayIndex, ConstantPool
from compiler.passes.rewriting.expansion import Expansion, Expansions, widening, with_half_storage
from compiler.passes.rewriting.matching import Array, array_of, as_constant
from schedules.ir.tvm_types import BlockBuilder, Expr, Tensor, Type, Var


@dataclass(frozen=True)
class Packed:
    """The stored form of an array, and the tensor expression that expands it."""

    stored: tuple[Array, ...]
    expand: Callable[..., Tensor]


# Returns None if it would not be smaller.
Pack = Callable[[Array], Packed | None]


def store_narrow(mod: IRModule, expansions: Expansions, pack: Pack, name: str) -> None:
    """Store the module's constants, or the tensors they are expanded from, packed by `pack`; `name` is the kernel's."""
    # By the identity of an array, which is unique while the array is kept with it.
    packed: dict[int, tuple[Array, Packed | None]] = {}

    def look(array: Array) -> Packed | None:
        if id(array) not in packed:
            packed[id(array)] = array, pack(array)
        return packed[id(array)][1]

    for constant in constants_of(mod):
        _note(constant, expansions, look, name)


def _note(constant: GenericConst, expansions: Expansions, look: Pack, name: str) -> None:
    known = expansions.known.get(constant)
    arrays = (array_of(constant),) if known is None else known.stored
    packed = [look(array) for array in arrays]
    if all(each is None for each in packed):
        return
    stored: list[Array] = []
    for array, pack in zip(arrays, packed, strict=True):
        stored += [array] if pack is None else pack.stored

    def kernel(*parts: Tensor) -> Tensor:
        rest, restored = list(parts), []
        for pack in packed:
            compressed_parts = [rest.pop(0) for _ in range(1 if pack is None else len(pack.stored))]
            restored.append(compressed_parts[0] if pack is None else pack.expand(*compressed_parts))
        return restored[0] if known is None else known.kernel(*restored)

    expansions.known[constant] = Expansion(tuple(stored), kernel, name if known is None else known.name)


MAX_BITS = 8
_FEWEST_OF_PALETTE = 1024  # elements; a palette of 256 is as large
_PROBE = 4096


@graph_pass("store-palettes", summary="Store weights of few distinct values as a palette and codes of 1 to 8 bits")
def store_palettes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds to `context.expansions`; the module is unchanged."""
    store_narrow(mod, context.expansions, _packed_palette, "expand_palette")
    return mod


def _packed_palette(array: Array) -> Packed | None:
    """Return the packed palette; None if it saves nothing."""
    if array.dtype != np.float32 or array.size < _FEWEST_OF_PALETTE:
        return None
    stored = palette_codes(array)
    return None if stored is None else Packed(stored, _palette_expansion(array.shape, *stored))


def palette_codes(array: Array) -> tuple[Array, Array] | None:
    """Return (codes packed into bytes, float32 palette) if there are at most 256 values; otherwise None."""
    flat = np.ascontiguousarray(array).ravel().view(np.uint32)  # by bits: +0 and -0 are two values
    step = max(1, flat.size // _PROBE)
    if len(np.unique(flat[::step])) > 1 << MAX_BITS:
        return None
    values, codes = np.unique(flat, return_inverse=True)
    if len(values) > 1 << MAX_BITS:
        return None
    bits = max(1, int(len(values) - 1).bit_length())
    palette = np.zeros(1 << bits, np.float32)
    palette[: len(values)] = values.view(np.float32)
    digits = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
    packed = np.packbits(digits.astype(np.uint8).ravel(), bitorder="little")
    return np.append(packed, np.uint8(0)), palette  # one more byte: codes are read two bytes at a time


def _palette_expansion(shape: tuple[int, ...], codes: Array, palette: Array) -> Callable[..., Tensor]:
    bits = int(len(palette) - 1).bit_length()

    def expand(packed: te.Tensor, values: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            flat: Expr = 0
            for index, size in zip(indices, shape, strict=True):
                flat = flat * size + index
            first = flat * bits
            low, high = packed[first // 8].astype("int32"), packed[first // 8 + 1].astype("int32")
            pair = low | (high << 8)
            return values[(pair >> (first % 8).astype("int32")) & ((1 << bits) - 1)]

        return te.compute(shape, element, name="expand_palette")

    return expand


_FEWEST_INTEGERS = 4096  # elements; fewer are not worth a kernel at load time
# The largest integer of a filter: 127 with round-to-nearest weights, possibly less otherwise, or if the filter is a
# phase of a transposed one. The product of scale and integer was rounded, so dividing again may give a neighbor of the
# scale.
_MAX_INTEGERS = range(127, 0, -1)
_PROBED = 64


@graph_pass("store-scaled-integers", summary="Store weights that are 8-bit integers times a scale per channel as such")
def store_scaled_integers(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds to `context.expansions`; the module is unchanged."""
    store_narrow(mod, context.expansions, packed_integers, "expand_integers")
    return mod


def packed_integers(array: Array) -> Packed | None:
    """Return the packed integers; None if no scale per output channel restores the numbers exactly."""
    if array.dtype != np.float32 or array.size < _FEWEST_INTEGERS or array.ndim < 2:
        return None
    last = array.ndim - 1
    # Filters are along the first axis, or in blocks: along the first and the last.
    for axes in ((0,), (0, last), (last,)):
        if 8 * np.prod([array.shape[axis] for axis in axes]) > array.size:
            continue
        if _may_be_scaled(array, axes) and (found := _scaled(array, axes)) is not None:
            return Packed(found, _expanded)
    return None


def _may_be_scaled(array: Array, axes: Sequence[int]) -> bool:
    """True if a few numbers of a filter are integers at one of its scales; in other weights none are."""
    indices = [array.shape[axis] // 2 if axis in axes else slice(None) for axis in range(array.ndim)]
    values = np.ravel(array[tuple(indices)])
    largest, some = np.abs(values).max(), values[np.flatnonzero(values)[:_PROBED]]
    if not some.size or not np.isfinite(largest):
        return False
    nearest = largest / np.arange(1, _MAX_INTEGERS[0] + 1, dtype=np.float32)
    scales = np.concatenate([nearest, np.nextafter(nearest, np.float32(0)), np.nextafter(nearest, np.float32(np.inf))])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exact = np.rint(some / scales[:, None]) * scales[:, None] == some
    return bool(exact.all(1).any())


def _scaled(array: Array, axes: Sequence[int]) -> tuple[Array, Array] | None:
    """Return (int8 integers, float32 scales that broadcast over them) whose products are the array."""
    ahead = np.moveaxis(array, axes, range(len(axes)))
    filters = np.ascontiguousarray(ahead).reshape(-1, int(np.prod(ahead.shape[len(axes) :])))
    largest = np.abs(filters).max(1, keepdims=True)
    if not np.isfinite(largest).all():
        return None
    scales, rest = np.ones(largest.shape, np.float32), np.flatnonzero(largest)
    for most, end in itertools.product(_MAX_INTEGERS, (None, 0, np.inf)):
        if not rest.size:
            break
        candidate = largest[rest] / np.float32(most)
        if end is not None:
            candidate = np.nextafter(candidate, np.float32(end))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            exact = (np.rint(filters[rest] / candidate) * candidate == filters[rest]).all(1)
        scales[rest[exact]] = candidate[exact]
        rest = rest[~exact]
    if rest.size:
        return None
    wide = scales.reshape([size if axis in axes else 1 for axis, size in enumerate(array.shape)])
    return np.rint(array / wide).astype(np.int8), wide


def _expanded(integers: te.Tensor, scales: te.Tensor) -> te.Tensor:
    sizes = [int(size) for size in scales.shape]

    def element(*at: Expr) -> Expr:
        indices = [0 if size == 1 else index for size, index in zip(sizes, at, strict=True)]
        return integers(*at).astype("float32") * scales(*indices)

    return te.compute(integers.shape, element, name="expand_integers")


STORED_NAME = "stored_{}"


@graph_pass(
    "expand-at-load",
    summary="Store transformed weights in their smaller form; a function of the module expands them once",
    only="processor",
)
def expand_at_load(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds `EXPAND_ENTRY(*stored)`, which returns every constant of the module that `context.expansions` knows.

    Winograd-transformed 3x3 filters take 36 numbers for 9: without this, ResNet-18 is 4 times the size of its ONNX
    file. Numbers that are exact in 16 bits are stored in 16 bits. `lift-parameters` makes the constants the last
    parameters of `main`, in the order in which they are returned.
    """
    expansions: Expansions = context.expansions
    expansions.chosen = _in_use(mod, expansions)
    expansions.stored.clear()
    if not expansions.chosen:
        return mod
    builder = relax.BlockBuilder(mod)
    stored = _Stored(expansions)
    with builder.function(EXPAND_ENTRY):
        chosen = [(each, expansions.known[each]) for each in expansions.chosen]
        arguments = [stored.variables(known) for _, known in chosen]
        with builder.dataflow():
            results = [
                builder.emit(_expansion_call(builder, known, own, constant.ty))
                for (constant, known), own in zip(chosen, arguments, strict=True)
            ]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output, params=stored.parameters)
    return builder.get()


def _expansion_call(builder: BlockBuilder, expansion: Expansion, arguments: list[Expr], result: Type) -> Expr:
    """Call an expansion's kernel, with a result of type `result`.

    Kernels that differ only in free sizes are one function.
    """
    if not expansion.free:
        return builder.call_te(expansion.kernel, *arguments, primfunc_name_hint=expansion.name)
    inputs = []
    for number, (argument, free) in enumerate(zip(arguments, expansion.free, strict=True)):
        shape = [int(size) for size in argument.ty.shape]
        sizes = [
            tirx.Var(f"size_{number}_{axis}", "int64") if axis in free else shape[axis] for axis in range(len(shape))
        ]
        inputs.append(te.placeholder(sizes, str(argument.ty.dtype), f"stored_{number}"))
    function = te.create_prim_func([*inputs, expansion.kernel(*inputs)])
    return relax.call_tir(builder.add_func(function, expansion.name), arguments, result)


def _in_use(mod: IRModule, expansions: Expansions) -> list[Expr]:
    """Return the distinct constants in use that a pass computed from smaller ones, or that are exact in 16 bits."""
    pool = ConstantPool()
    constants = {
        index: each
        for each in constants_of(mod)
        if _is_smaller(each, expansions) and (index := pool.index(each)) is not None
    }
    return list(constants.values())


def _is_smaller(constant: Expr, expansions: Expansions) -> bool:
    """True if the constant has a smaller form; records constants that are exact in 16 bits."""
    known = expansions.known.get(constant)
    if known is not None:
        expansions.known[constant] = with_half_storage(known)
        return True
    widened = widening(array_of(constant)) if str(constant.ty.dtype) == "float32" else None
    if widened is not None:
        expansions.known[constant] = widened
    return widened is not None


class _Stored:
    """The parameters of the expansion function, one for each distinct stored array."""

    def __init__(self, expansions: Expansions) -> None:
        self._expansions = expansions
        self._index = ArrayIndex()
        self.parameters: list[Var] = []

    def variables(self, expansion: Expansion) -> list[Var]:
        return [self._variable(array) for array in expansion.stored]

    def _variable(self, array: Array) -> Var:
        index = self._index.index(array)
        if index == len(self.parameters):
            name = STORED_NAME.format(index)
            self.parameters.append(relax.Var(name, as_constant(array).ty))
            self._expansions.stored[name] = array
        return self.parameters[index]
