"""8-bit and 4-bit float weights: fine-grained FP8 (DeepSeek, Qwen), FBGEMM's FP8, MXFP4 (gpt-oss).

FP8: `weight` (rows, depth) times `weight_scale_inv`, one number per block of rows and features, by default 128 by
128: https://huggingface.co/docs/transformers/quantization/finegrained_fp8

FBGEMM: `weight` times `weight_scale` (rows, 1).

ModelOpt: FP8 like FBGEMM's with one scale, or NVFP4: `weight` uint8 (rows, depth / 2) times `weight_scale` float8
(rows, depth / 16) times `weight_scale_2`, one number.

MXFP4: `blocks` uint8 (..., rows, groups, 16), two numbers per byte, times 2 ** (`scales` - 127), uint8 (..., rows,
groups): https://huggingface.co/openai/gpt-oss-20b
"""

from __future__ import annotations

import math

import numpy as np

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.quantized.parts import Parts, Scheme, fp4, powers, whole
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Array, Groups, Matrix

_UNUSED = tuple(  # for activations and caches
    f".{each}_scale" for each in ("activation", "input", "k", "v", "q", "kv")
) + (".weight_scale_ub", ".input_scale_ub")
FLOATS_OF_8_BITS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def float8(parts: Parts, scale: str, block: tuple[int, int] | None = None) -> Matrix:
    """Read 8-bit floats with the scales of a tensor: one number, one per row, or one per block.

    Args:
        parts: the weight's tensors.
        scale: the name suffix of the scales.
        block: rows and features of a block; None to infer them from the shape, splitting each axis evenly.

    Raises InvalidModelError if shapes do not fit, or a number is not finite.
    """
    rows, depth = parts.matrix_shape(".weight")
    stored = parts.integers(".weight", tuple(FLOATS_OF_8_BITS))
    scales = _scales(parts, scale)
    counts = scales.shape if scales.ndim == 2 else (scales.size, 1)
    tall, wide = block or (-(-rows // max(counts[0], 1)), -(-depth // max(counts[1], 1)))
    if scales.size == 1:
        tall, wide, counts = rows, depth, (1, 1)
    if counts != (-(-rows // tall), -(-depth // wide)):
        raise parts.wrong(scale, f"has shape {scales.shape}, which does not fit a weight of {rows} x {depth}")
    block_rows = np.arange(rows) // tall
    values = stored.view(np.uint8)
    if _is_nan(values, str(stored.dtype)):
        raise parts.wrong(".weight", "contains non-finite numbers")
    size = whole(depth) if counts[1] == 1 else wide
    return Matrix(FLOATS_OF_8_BITS[str(stored.dtype)], values, depth, Groups(size, scales.reshape(counts)[block_rows]))


def _is_nan(values: Array, dtype: str) -> bool:
    """True if any element is NaN; for E5M2 also if any is infinite."""
    least = 0x7F if dtype == "float8_e4m3fn" else 0x7C
    return bool(((values & 0x7F) >= least).any())


def _scales(parts: Parts, end: str) -> Array:
    shape = parts.shape(end)
    if parts.dtype(end) == "float8_e8m0fnu":
        return powers(parts.integers(end, ("float8_e8m0fnu",), shape))
    return parts.floats(end, shape)


def _of_float8(scale: str, block: tuple[int, int] | None) -> Scheme:
    """Return the scheme of 8-bit float weights with one tensor of scales; `block` as in `float8`."""
    return Scheme(
        marks=(scale,),
        ends=(".weight", scale),
        shape=lambda parts: parts.matrix_shape(".weight"),
        read=lambda parts: float8(parts, scale, block),
        unused=_UNUSED,
    )


def fine_grained(settings: Settings) -> Scheme | tuple[Scheme, ...]:
    """Return the scheme of fine-grained FP8, or of one scale per weight. Raises InvalidModelError for an invalid block
    size."""
    block = settings.get("weight_block_size")
    if block is None:
        return _of_float8(".weight_scale_inv", None), _of_float8(".weight_scale", None)
    if not isinstance(block, list) or len(block) != 2 or not all(type(each) is int and each > 0 for each in block):
        raise InvalidModelError(f"{settings.path}: 'weight_block_size' is {str(block)[:80]!r}, not two sizes")
    return _of_float8(".weight_scale_inv", (block[0], block[1]))


def fbgemm(settings: Settings) -> Scheme:
    """Return the scheme of FBGEMM FP8."""
    return _of_float8(".weight_scale", None)


def modelopt(settings: Settings) -> Scheme:
    """Return the schemes of ModelOpt's FP8 and NVFP4, which a model may mix. Raises OptionError for others."""
    algorithm = settings.get("quant_algo")
    if algorithm not in ("FP8", "NVFP4", "MIXED_PRECISION"):
        raise OptionError(
            f"{settings.path}: ModelOpt's {str(algorithm)[:80]!r} is not supported", "supported are FP8 and NVFP4"
        )
    ends = (".weight", ".weight_scale", ".weight_scale_2")
    return Scheme((".weight_scale",), ends, _modelopt_shape, _modelopt_matrix, _UNUSED)


def _modelopt_shape(parts: Parts) -> tuple[int, int]:
    rows, columns = parts.matrix_shape(".weight")
    return rows, 2 * columns if parts.dtype(".weight") == "uint8" else columns


def _modelopt_matrix(parts: Parts) -> Matrix:
    if parts.dtype(".weight") != "uint8":
        return float8(parts, ".weight_scale")
    return nvfp4(parts, ".weight", ".weight_scale_2", divides=False)


def nvfp4(parts: Parts, codes: str, whole: str, *, divides: bool) -> Matrix:
    """Read 4-bit floats, two per byte, with a float8 scale per 16 neighbors, relative to a number for the whole tensor.

    Args:
        parts: the weight's tensors; scales are ".weight_scale".
        codes, whole: the name suffixes of the codes and of the tensor's number.
        divides: divide scales by the tensor's number instead of multiplying.

    Raises InvalidModelError if shapes do not fit, or a number is not finite.
    """
    rows, columns = parts.matrix_shape(codes)
    scales = parts.integers(".weight_scale", ("float8_e4m3fn",), (rows, -(-2 * columns // 16))).astype(np.float32)
    factor = parts.floats(whole).astype(np.float32)
    if factor.size != 1 or not factor.all() or not np.isfinite(scales).all():
        raise parts.wrong(whole, "or the scales that it applies to are not finite")
    factor = factor.reshape(())
    return fp4(parts.integers(codes, ("uint8",)), scales / factor if divides else scales * factor, 16)


def mxfp4(settings: Settings) -> Scheme:
    """Return the scheme of MXFP4: expert weights with blocks and scales in separate tensors."""
    return Scheme(("_blocks",), ("_blocks", "_scales"), _mxfp4_shape, _mxfp4_matrix)


def _mxfp4_shape(parts: Parts) -> tuple[int, ...]:
    shape = parts.shape("_blocks")
    if len(shape) < 3 or shape[-1] != 16 or not all(shape):
        raise parts.wrong("_blocks", f"has shape {shape}, expected (..., rows, groups, 16)")
    return *shape[:-2], 32 * shape[-2]


def _mxfp4_matrix(parts: Parts) -> Matrix:
    *leading, depth = _mxfp4_shape(parts)
    rows = math.prod(leading)
    blocks = parts.integers("_blocks", ("uint8",)).reshape(rows, depth // 2)
    scales = parts.integers("_scales", ("uint8",), (*leading, depth // 32)).reshape(rows, depth // 32)
    return fp4(blocks, powers(scales), 32)
