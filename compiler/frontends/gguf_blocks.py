"""GGUF tensors as weights in their original blocks: integers and scales exactly as stored.

The block types are those of ggml (`ggml-common.h`). Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compiler.errors import InvalidModelError
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.matching import Array
from schedules.matmul.blocks.expressions import BlockFormat

_FLOATS = {"F32": ("float32", np.float32), "F16": ("float16", np.uint16), "BF16": ("bfloat16", np.uint16)}
_SUPER = 256  # elements of a block of the K types
_ROWS_AT_ONCE = 4096

# The integers of blocks (n, elements), and the numbers of their groups (n, groups).
Parts = tuple[Array, dict[str, Array]]


@dataclass(frozen=True)
class _BlockType:
    """Block layout of a GGUF type: `elements` numbers in `size` bytes."""

    elements: int
    size: int
    layout: BlockFormat
    read: Callable[[Array], Parts]


def readable_types() -> tuple[str, ...]:
    """Return ggml's names of the types that `read_gguf_blocks` reads."""
    return (*_FLOATS, *_TYPES)


def read_gguf_blocks(raw: Array, type_name: str, shape: tuple[int, int]) -> BlockWeight:
    """Read a tensor as GGUF stores it, for example `gguf.ReaderTensor.data`.

    Args:
        raw: its bytes in order, viewed as elements of any type.
        type_name: ggml's name of its type ("Q4_K").
        shape: (columns, depth): features of the output and of the input; GGUF's own order is the reverse.

    Raises InvalidModelError for other types, or if the bytes do not fit the shape.
    """
    columns, depth = shape
    content = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    if type_name in _FLOATS:
        numbers, dtype = _FLOATS[type_name]
        _expect(content, columns * depth * np.dtype(dtype).itemsize, type_name, shape)
        return BlockWeight.of_floats(content.view(dtype).reshape(shape), numbers)
    if type_name not in _TYPES:
        known = ", ".join(readable_types())
        raise InvalidModelError(f"GGUF tensors of type {type_name} are not supported; supported are {known}")
    kind = _TYPES[type_name]
    if depth % kind.elements:
        raise InvalidModelError(
            f"a GGUF tensor of type {type_name} has rows of {depth} elements, not a multiple of {kind.elements}"
        )
    blocks = depth // kind.elements
    _expect(content, columns * blocks * kind.size, type_name, shape)
    rows = content.reshape(columns, blocks * kind.size)
    parts = [_read_rows(rows[start : start + _ROWS_AT_ONCE], kind, depth) for start in range(0, columns, _ROWS_AT_ONCE)]
    return BlockWeight.stacked(parts)


def _expect(content: Array, size: int, type_name: str, shape: tuple[int, int]) -> None:
    if content.size != size:
        raise InvalidModelError(
            f"a GGUF tensor of type {type_name} and shape {shape} holds {content.size} bytes instead of {size}: "
            "the file is damaged or truncated"
        )


def _read_rows(rows: Array, kind: _BlockType, depth: int) -> BlockWeight:
    values, numbers = kind.read(rows.reshape(-1, kind.size))
    by_row = {name: each.reshape(len(rows), -1) for name, each in numbers.items()}
    return BlockWeight.of_blocks(kind.layout, values.reshape(len(rows), depth), by_row)


def _half(blocks: Array, at: int) -> Array:
    """Return the float16 at byte `at` of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _nibbles(packed: Array) -> Array:
    """Low halves of the bytes, then high ones: (..., n) becomes (..., 2 n)."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _read_q4(minimum: bool, fifth: bool) -> Callable[[Array], Parts]:
    """Return the reader of Q4_0, Q4_1, Q5_0 and Q5_1."""

    def read(blocks: Array) -> Parts:
        numbers, at = {"scale": _half(blocks, 0)}, 2
        if minimum:
            numbers["minimum"], at = _half(blocks, 2), 4
        high = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4 if fifth else np.uint8(0)
        return _nibbles(blocks[:, at + 4 * fifth :]) | high, numbers

    return read


def _read_q8_0(blocks: Array) -> Parts:
    return blocks[:, 2:] ^ np.uint8(128), {"scale": _half(blocks, 0)}


def _read_k(fifth: bool) -> Callable[[Array], Parts]:
    """Return the reader of Q4_K and Q5_K."""

    def read(blocks: Array) -> Parts:
        packed = blocks[:, 4:16].reshape(-1, 3, 4)
        scales, minimums, rest = packed[:, 0], packed[:, 1], packed[:, 2]
        numbers = {
            "scale": _half(blocks, 0),
            "scale_integers": np.concatenate([scales & 63, (rest & 15) | ((scales >> 2) & 48)], axis=1),
            "minimum": -_half(blocks, 2),
            "minimum_integers": np.concatenate([minimums & 63, (rest >> 4) | ((minimums >> 2) & 48)], axis=1),
        }
        start = 48 if fifth else 16
        values = _nibbles(blocks[:, start:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
        if fifth:
            bits = np.arange(8, dtype=np.uint8)[None, :, None]
            values |= ((blocks[:, None, 16:48] >> bits) & 1) << 4
        return values.reshape(-1, _SUPER), numbers

    return read


def _read_q6_k(blocks: Array) -> Parts:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return (low | high << 4).reshape(-1, _SUPER), {"scale": _half(blocks, 208), "scale_integers": scales}


def _planes_of_two(packed: Array) -> Array:
    """Unpack 2-bit values: each 32 bytes hold 32 lowest ones, then the next 32, and so on."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    values: Array = ((packed.reshape(len(packed), -1, 1, 32) >> shifts) & 3).reshape(len(packed), -1)
    return values


def _read_q2_k(blocks: Array) -> Parts:
    numbers = {
        "scale": _half(blocks, 80),
        "scale_integers": blocks[:, :16] & 15,
        "minimum": -_half(blocks, 82),
        "minimum_integers": blocks[:, :16] >> 4,
    }
    return _planes_of_two(blocks[:, 16:80]), numbers


def _read_q3_k(blocks: Array) -> Parts:
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    high = ((blocks[:, None, :32] >> bits) & 1).reshape(-1, _SUPER)
    low, upper = _nibbles(blocks[:, 96:104]), _planes_of_two_small(blocks[:, 104:108])
    scales = (low | upper << 4).astype(np.int8) - np.int8(32)
    return _planes_of_two(blocks[:, 32:96]) | high << 2, {"scale": _half(blocks, 108), "scale_integers": scales}


def _planes_of_two_small(packed: Array) -> Array:
    """Like `_planes_of_two`, over all bytes together."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, :, None]
    values: Array = ((packed[:, None] >> shifts) & 3).reshape(len(packed), -1)
    return values


def _read_iq4_nl(blocks: Array) -> Parts:
    return _IQ4[_nibbles(blocks[:, 2:])], {"scale": _half(blocks, 0)}


def _read_iq4_xs(blocks: Array) -> Parts:
    indices = np.arange(8)
    low = (blocks[:, 4:8][:, indices // 2] >> (4 * (indices % 2)).astype(np.uint8)) & 15
    high = (blocks[:, 2:4][:, indices // 4] >> (2 * (indices % 4)).astype(np.uint8)) & 3
    scales = (low | high << 4).astype(np.int8) - np.int8(32)
    values = _IQ4[_nibbles(blocks[:, 8:].reshape(-1, 8, 16)).reshape(-1, _SUPER)]
    return values, {"scale": _half(blocks, 0), "scale_integers": scales}


def _read_mxfp4(blocks: Array) -> Parts:
    """Powers of two times halves of 4-bit numbers; the numbers are stored doubled."""
    return _FP4[_nibbles(blocks[:, 1:])], {"scale": np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)}


def _read_tq2_0(blocks: Array) -> Parts:
    """Numbers -1, 0 and 1."""
    return _planes_of_two(blocks[:, :64]), {"scale": np.repeat(_half(blocks, 64), _SUPER // 32, 1)}


# Values of the IQ4 and MXFP4 codes, plus 128 or 16, so that they are integers of 8 or 5 bits.
_IQ4 = np.array([1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8)
_FP4 = np.array([16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4], np.uint8)
_K4 = BlockFormat(4, 32, minimum=True, super_groups=8)
_K5 = BlockFormat(5, 32, minimum=True, super_groups=8)
_TYPES = {
    "Q4_0": _BlockType(32, 18, BlockFormat(4, 32, zero=8), _read_q4(minimum=False, fifth=False)),
    "Q4_1": _BlockType(32, 20, BlockFormat(4, 32, minimum=True), _read_q4(minimum=True, fifth=False)),
    "Q5_0": _BlockType(32, 22, BlockFormat(5, 32, zero=16), _read_q4(minimum=False, fifth=True)),
    "Q5_1": _BlockType(32, 24, BlockFormat(5, 32, minimum=True), _read_q4(minimum=True, fifth=True)),
    "Q8_0": _BlockType(32, 34, BlockFormat(8, 32, zero=128), _read_q8_0),
    "Q2_K": _BlockType(_SUPER, 84, BlockFormat(2, 16, minimum=True, super_groups=16), _read_q2_k),
    "Q3_K": _BlockType(_SUPER, 110, BlockFormat(3, 16, zero=4, super_groups=16), _read_q3_k),
    "Q4_K": _BlockType(_SUPER, 144, _K4, _read_k(fifth=False)),
    "Q5_K": _BlockType(_SUPER, 176, _K5, _read_k(fifth=True)),
    "Q6_K": _BlockType(_SUPER, 210, BlockFormat(6, 16, zero=32, super_groups=16), _read_q6_k),
    "IQ4_NL": _BlockType(32, 18, BlockFormat(8, 32, zero=128), _read_iq4_nl),
    "IQ4_XS": _BlockType(_SUPER, 136, BlockFormat(8, 32, zero=128, super_groups=8), _read_iq4_xs),
    "MXFP4": _BlockType(32, 17, BlockFormat(5, 32, zero=16), _read_mxfp4),
    "TQ2_0": _BlockType(_SUPER, 66, BlockFormat(2, 32, zero=1), _read_tq2_0),
}

_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": (), "TQ2_0": (64,)}
# Elements and bytes of a block of each type, and the positions of its float16 scales.
BLOCK_SIZES = {
    name: (each.elements, each.size, _SCALES.get(name, (0, 2) if each.layout.minimum else (0,)))
    for name, each in _TYPES.items()
}
