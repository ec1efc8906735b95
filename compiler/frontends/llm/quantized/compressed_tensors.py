"""compressed-tensors (llm-compressor, Neural Magic): integers packed in words or bytes, 8-bit and 4-bit floats.

Packed: `weight_packed` int32 (rows, words), lowest bits first, of integers plus 2 ** (bits - 1); `weight_shape`;
`weight_scale` (rows, groups); if asymmetric, `weight_zero_point`, packed along the rows or int8; `weight_g_idx`
(depth,) for groups in act-order. Others: `weight` int8 or float8 (rows, depth). NVFP4 and MXFP4: `weight_packed` uint8,
two numbers per byte, with scales of 16 or 32 neighbors.
https://github.com/vllm-project/compressed-tensors/tree/main/src/compressed_tensors/compressors
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import OptionError
from compiler.frontends.llm.quantized.floats import FLOATS_OF_8_BITS, float8, nvfp4
from compiler.frontends.llm.quantized.parts import Parts, Scheme, fp4, order_of, powers, unpacked, whole
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Array, Groups, Matrix

_FORMATS = (
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)


_ENDS = (".weight",) + tuple(
    f".weight_{each}" for each in ("packed", "scale", "shape", "zero_point", "g_idx", "global_scale")
)
_UNUSED = (
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
    ".q_scale",
)


@dataclass(frozen=True)
class _Compressed:
    """Weights whose tensors determine their storage; `groups` are the group sizes in the configuration."""

    groups: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]

    def shape(self, parts: Parts) -> tuple[int, int]:
        if not parts.has(".weight_packed"):
            return parts.matrix_shape(".weight")
        rows, words = parts.matrix_shape(".weight_packed")
        if parts.dtype(".weight_packed") == "uint8":
            return rows, 2 * words
        stored = parts.integers(".weight_shape", ("int64", "int32"), (2,))
        if int(stored[0]) != rows or not 0 < int(stored[1]) <= 16 * words:
            raise parts.wrong(".weight_shape", f"is {stored.tolist()}, for {rows} rows of {words} words")
        return rows, int(stored[1])

    def read(self, parts: Parts) -> Matrix:
        rows, depth = self.shape(parts)
        if not parts.has(".weight_packed"):
            if parts.dtype(".weight") in FLOATS_OF_8_BITS:
                return self._float8(parts, rows, depth)
            values = parts.integers(".weight", ("int8",))
            return self._integers(parts, values.view(np.uint8) ^ np.uint8(128), 8)
        if parts.dtype(".weight_packed") == "uint8":
            return _fp4(parts, rows, depth)
        words = parts.integers(".weight_packed", ("int32",))
        bits = next((each for each in (2, 4, 8) if words.shape[1] == -(-depth * each // 32)), None)
        if bits is None:
            what = f"holds {words.shape[1]} words per row for {depth} numbers of 2, 4 or 8 bits"
            raise parts.wrong(".weight_packed", what)
        return self._integers(parts, unpacked(words, bits, depth), bits)

    def _float8(self, parts: Parts, rows: int, depth: int) -> Matrix:
        shape = parts.shape(".weight_scale")
        fitting = (each for each in self.blocks if shape == (-(-rows // each[0]), -(-depth // each[1])))
        return float8(parts, ".weight_scale", next(fitting, None))

    def _integers(self, parts: Parts, values: Array, bits: int) -> Matrix:
        """Return the weight from unsigned integers, offset by 2 ** (bits - 1)."""
        rows, depth = values.shape
        scales = parts.floats(".weight_scale")
        if scales.size == 1:
            scales = np.broadcast_to(scales.reshape(1, 1), (rows, 1))
        if scales.ndim == 1:
            scales = scales[:, None]
        size = whole(depth) if scales.shape == (rows, 1) else self._group(depth, scales.shape[-1])
        if size is None or scales.shape != (rows, -(-depth // size)):
            what = f"has shape {scales.shape}, which does not fit a weight of {values.shape}"
            raise parts.wrong(".weight_scale", what)
        zeros = self._zeros(parts, rows, scales.shape[1], bits)
        order = order_of(parts, ".weight_g_idx", depth, size)
        if order is not None:
            values = values[:, order]
        return Matrix(f"INT{bits}", values, depth, Groups(size, scales, zeros, order))

    def _group(self, depth: int, count: int) -> int | None:
        """Return the group size, given the number of groups per row."""
        return next((size for size in self.groups if -(-depth // size) == count), None)

    def _zeros(self, parts: Parts, rows: int, groups: int, bits: int) -> Array:
        middle = np.uint8(1 << (bits - 1))
        if not parts.has(".weight_zero_point"):
            return np.broadcast_to(middle, (rows, groups))
        if parts.dtype(".weight_zero_point") == "int8":
            stored = parts.integers(".weight_zero_point", ("int8",))
            if stored.size not in (1, rows * groups):
                raise parts.wrong(".weight_zero_point", f"has shape {stored.shape}, expected {(rows, groups)}")
            shifted = stored.astype(np.uint8) + middle
            return np.broadcast_to(shifted, (rows, groups)) if stored.size == 1 else shifted.reshape(rows, groups)
        words = parts.integers(".weight_zero_point", ("int32",), (-(-rows * bits // 32), groups))
        return unpacked(words.T, bits, rows).T


def _fp4(parts: Parts, rows: int, depth: int) -> Matrix:
    """Read NVFP4, whose scales are float8 relative to one of the whole tensor, or MXFP4, whose scales are powers of
    two."""
    if parts.has(".weight_global_scale"):
        return nvfp4(parts, ".weight_packed", ".weight_global_scale", divides=True)
    exponents = parts.integers(".weight_scale", ("uint8", "float8_e8m0fnu"), (rows, -(-depth // 32)))
    return fp4(parts.integers(".weight_packed", ("uint8",)), powers(exponents), 32)


def compressed_tensors(settings: Settings) -> Scheme:
    """Return the scheme of a configuration. Raises OptionError or InvalidModelError."""
    layouts, sizes, blocks = {settings.get("format")}, set[int](), set[tuple[int, int]]()
    for group in settings.table("config_groups").values():
        group_settings = Settings(group if isinstance(group, dict) else {}, settings.path, {})
        layouts.add(group_settings.get("format"))
        weights = Settings(group_settings.table("weights"), settings.path, {})
        if weights.get("group_size") not in (None, -1):
            sizes.add(weights.size("group_size"))
        block = weights.get("block_structure")
        if isinstance(block, list) and len(block) == 2 and all(type(each) is int and each > 0 for each in block):
            blocks.add((block[0], block[1]))
    for layout in sorted(str(each) for each in layouts if each is not None):
        if layout not in _FORMATS:
            raise OptionError(
                f"{settings.path}: compressed-tensors in the format {layout[:80]!r} is not supported",
                f"supported: {', '.join(_FORMATS)}",
            )
    sparsity = settings.table("sparsity_config").get("format")
    if sparsity not in (None, "dense"):
        raise OptionError(f"{settings.path}: sparse weights ({str(sparsity)[:80]!r}) are not supported")
    if settings.get("transform_config"):
        raise OptionError(f"{settings.path}: weights with transforms ('transform_config') are not supported")
    compressed = _Compressed(tuple(sorted(sizes)), tuple(sorted(blocks)))
    return Scheme((".weight_packed", ".weight_scale"), _ENDS, compressed.shape, compressed.read, _UNUSED)
