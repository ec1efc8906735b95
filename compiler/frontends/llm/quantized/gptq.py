"""GPTQ as written by AutoGPTQ, GPTQModel and AutoRound, and AWQ's GEMM layout: integers of 2 to 8 bits packed into
words, with zero points per group.

GPTQ: `qweight` int32 (depth in words, rows), packed along the depth; `qzeros` int32 (groups, rows in words); `scales`
(groups, rows); `g_idx` int32 (depth,), the group of each feature. Zero points are stored minus 1 in the format "gptq",
and unchanged in "gptq_v2":
https://github.com/AutoGPTQ/AutoGPTQ/blob/main/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py

AWQ: `qweight` int32 (depth, rows in words), packed along the rows in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest
bits; `qzeros` (groups, rows in words) likewise; `scales` (groups, rows):
https://github.com/casper-hansen/AutoAWQ/blob/main/awq/modules/linear/gemm.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import OptionError
from compiler.frontends.llm.quantized.parts import Parts, Scheme, order_of, unpacked, whole, words_of
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Array, Groups, Matrix

_BITS = (2, 3, 4, 8)
_FLOAT_BITS = 16  # of unquantized modules
_AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # position of rows 0, 1, ... of eight within a word


@dataclass(frozen=True)
class _Gptq:
    """GPTQ weights; `group` is 0 for one scale per row, `offset` is added to stored zero points."""

    bits: int
    group: int
    offset: int

    def shape(self, parts: Parts) -> tuple[int, int]:
        words, rows = parts.matrix_shape(".qweight")
        return rows, words * 32 // self.bits

    def read(self, parts: Parts) -> Matrix:
        rows, depth = self.shape(parts)
        packed = parts.integers(".qweight", ("int32", "uint32"))
        values = unpacked(packed.T, self.bits, depth)
        size = self.group or whole(depth)
        groups = -(-depth // size)
        scales = parts.floats(".scales", (groups, rows))
        stored = parts.integers(".qzeros", ("int32", "uint32"), (groups, words_of(rows, self.bits)))
        zeros = (unpacked(stored, self.bits, rows) + np.uint8(self.offset)) & np.uint8((1 << self.bits) - 1)
        order = order_of(parts, ".g_idx", depth, size)
        if order is not None:
            values = values[:, order]
        return Matrix(f"INT{self.bits}", values, depth, Groups(size, scales.T, zeros.T, order))


def gptq(settings: Settings) -> Scheme:
    """Return the scheme of a configuration. Raises OptionError or InvalidModelError."""
    if any(not name.startswith("-") for name in settings.table("dynamic")):  # modules with "-" are not quantized
        raise OptionError(f"{settings.path}: GPTQ with settings of single modules ('dynamic') is not supported")
    layout = settings.get("checkpoint_format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        raise OptionError(
            f"{settings.path}: GPTQ in the format {str(layout)[:80]!r} is not supported",
            "supported are 'gptq' and 'gptq_v2', which GPTQModel converts to",
        )
    group = settings.get("group_size")
    weights = _Gptq(_bits(settings, _BITS), 0 if group == -1 else settings.size("group_size"), int(layout == "gptq"))
    ends = (".qweight", ".qzeros", ".scales", ".g_idx")
    return Scheme((".qweight",), ends, weights.shape, weights.read)


@dataclass(frozen=True)
class _Awq:
    """4-bit AWQ weights; `group` is 0 for one scale per row."""

    group: int

    def shape(self, parts: Parts) -> tuple[int, int]:
        depth, words = parts.matrix_shape(".qweight")
        return words * 8, depth

    def read(self, parts: Parts) -> Matrix:
        rows, depth = self.shape(parts)
        size = self.group or whole(depth)
        groups = -(-depth // size)
        values = _awq_rows(parts.integers(".qweight", ("int32", "uint32")), rows)
        scales = parts.floats(".scales", (groups, rows))
        zeros = _awq_rows(parts.integers(".qzeros", ("int32", "uint32"), (groups, rows // 8)), rows)
        return Matrix("INT4", values, depth, Groups(size, scales.T, zeros))


def _awq_rows(words: Array, rows: int) -> Array:
    """Unpack words (n, rows / 8) to integers (rows, n)."""
    values = unpacked(words, 4, rows).reshape(len(words), -1, 8)[..., _AWQ_PLACES]
    return np.ascontiguousarray(values.reshape(len(words), rows).T)


def awq(settings: Settings) -> Scheme:
    """Return the scheme of a configuration. Raises OptionError or InvalidModelError."""
    layout = str(settings.get("version") or "gemm").lower()
    if layout != "gemm":
        raise OptionError(f"{settings.path}: AWQ in the layout {layout[:80]!r} is not supported", "supported is 'gemm'")
    _bits(settings, (4,))
    group = settings.get("group_size")
    weights = _Awq(0 if group == -1 else settings.size("group_size"))
    return Scheme((".qweight",), (".qweight", ".qzeros", ".scales"), weights.shape, weights.read)


def auto_round(settings: Settings) -> Scheme:
    """Return the scheme of AutoRound, which writes either layout. Raises OptionError or InvalidModelError."""
    layouts = {"auto_gptq": gptq, "auto_awq": awq}
    layout = str(settings.get("packing_format")).removeprefix("auto_round:")
    if layout not in layouts or settings.get("data_type") not in (None, "int"):
        raise OptionError(
            f"{settings.path}: AutoRound in the format {layout[:80]!r} is not supported",
            f"supported are integers in {' and '.join(layouts)}",
        )
    for name, entry in settings.table("extra_config").items():
        differs = isinstance(entry, dict) and any(entry.get(key, value) != value for key, value in _common(settings))
        if differs and not entry.get("bits", 0) >= _FLOAT_BITS:
            raise OptionError(
                f"{settings.path}: AutoRound with settings of single modules ({name[:80]!r}) is not supported"
            )
    return layouts[layout](settings)


def _common(settings: Settings) -> list[tuple[str, object]]:
    return [(key, settings.get(key)) for key in ("bits", "group_size", "sym")]


def _bits(settings: Settings, supported: tuple[int, ...]) -> int:
    bits = settings.size("bits")
    if bits not in supported:
        raise OptionError(
            f"{settings.path}: weights of {bits} bits are not supported", f"supported: {', '.join(map(str, supported))}"
        )
    return bits
