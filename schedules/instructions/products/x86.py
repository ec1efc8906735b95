"""x86's instructions: VNNI (AVX-512 and, of up to 256 bits, AVX), AVX-VNNI-INT8, AVX-512 BF16, and `vpmaddwd`."""

from __future__ import annotations

from schedules.instructions.llvm_functions import vector
from schedules.instructions.products.operation import DOT_BF16, DOT_S8S8, DOT_U8S8, DOT_WORDS, splat
from schedules.instructions.products.product import Product, features

BITS = {4: 128, 8: 256, 16: 512}
"""Of the registers, by lanes of 32 bits. The lesser widths need AVX512VL or AVX-VNNI."""
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_VNNI = (features("avx512vnni", "avx512vl"), features("avxvnni"))


def _bytes(lanes: int) -> str:
    return f"<{4 * lanes} x i8>"


def _words(lanes: int) -> str:
    return f"<{2 * lanes} x i16>"


def _casts(lanes: int, kind: str) -> str:
    """Both factors as vectors of a type: %x and %y."""
    i = vector("i32", lanes)
    return f"  %x = bitcast {i} %a to {kind}\n  %y = bitcast {i} %b to {kind}"


def _dot_bytes(lanes: int, name: str) -> str:
    i, b = vector("i32", lanes), _bytes(lanes)
    return f"{_casts(lanes, b)}\n  %r = call {i} @{name}.{BITS[lanes]}({i} %c, {b} %x, {b} %y)"


def _declared(lanes: int, name: str, kind: str) -> list[str]:
    i = vector("i32", lanes)
    return [f"declare {i} @{name}.{BITS[lanes]}({i}, {kind}, {kind})"]


def _dot_words(lanes: int) -> str:
    i, w = vector("i32", lanes), _words(lanes)
    return f"{_casts(lanes, w)}\n  %r = call {i} @llvm.x86.avx512.vpdpwssd.{BITS[lanes]}({i} %c, {w} %x, {w} %y)"


def _declared_pairs(lanes: int) -> list[str]:
    return [f"declare {vector('i32', lanes)} @{_PAIRS[lanes]}({_words(lanes)}, {_words(lanes)})"]


def _pairs_of_bytes(lanes: int) -> str:
    """Bytes widened to 16 bits, whose products cannot overflow 32 bits in pairs: `vpmaddubsw` would take bytes as they
    are, but saturates its sums at 16 bits."""
    i, w, pairs = vector("i32", lanes), _words(lanes), _PAIRS[lanes]
    eight = splat(8, 2 * lanes, "i16")
    return f"""{_casts(lanes, w)}
  %xl = and {w} %x, {splat(255, 2 * lanes, "i16")}
  %xh = lshr {w} %x, {eight}
  %yu = shl {w} %y, {eight}
  %yl = ashr {w} %yu, {eight}
  %yh = ashr {w} %y, {eight}
  %pl = call {i} @{pairs}({w} %xl, {w} %yl)
  %ph = call {i} @{pairs}({w} %xh, {w} %yh)
  %s = add {i} %c, %pl
  %r = add {i} %s, %ph"""


def _pairs_of_words(lanes: int) -> str:
    i, w = vector("i32", lanes), _words(lanes)
    return f"{_casts(lanes, w)}\n  %p = call {i} @{_PAIRS[lanes]}({w} %x, {w} %y)\n  %r = add {i} %c, %p"


def _dot_bfloat16(lanes: int) -> str:
    f, h = vector("float", lanes), f"<{2 * lanes} x bfloat>"
    call = f"call {f} @llvm.x86.avx512bf16.dpbf16ps.{BITS[lanes]}({f} %c, {h} %x, {h} %y)"
    return f"{_casts(lanes, h)}\n  %r = {call}"


def _declared_bfloat16(lanes: int) -> list[str]:
    f, h = vector("float", lanes), f"<{2 * lanes} x bfloat>"
    return [f"declare {f} @llvm.x86.avx512bf16.dpbf16ps.{BITS[lanes]}({f}, {h}, {h})"]


_UNSIGNED, _SIGNED, _WORDS = "llvm.x86.avx512.vpdpbusd", "llvm.x86.avx2.vpdpbssd", "llvm.x86.avx512.vpdpwssd"
PRODUCTS = (
    Product(
        "vdpbf16ps",
        DOT_BF16,
        (features("avx512bf16", "avx512vl"),),
        2.0,
        (4, 8, 16),
        _dot_bfloat16,
        _declared_bfloat16,
    ),
    Product(
        "vpdpbusd",
        DOT_U8S8,
        _VNNI,
        4.0,
        (4, 8, 16),
        lambda lanes: _dot_bytes(lanes, _UNSIGNED),
        lambda lanes: _declared(lanes, _UNSIGNED, _bytes(lanes)),
        pads=True,
    ),
    Product(
        "vpdpbssd",
        DOT_S8S8,
        (features("avxvnniint8"),),
        4.0,
        (4, 8),
        lambda lanes: _dot_bytes(lanes, _SIGNED),
        lambda lanes: _declared(lanes, _SIGNED, _bytes(lanes)),
    ),
    Product(
        "vpdpwssd",
        DOT_WORDS,
        _VNNI,
        2.0,
        (4, 8, 16),
        _dot_words,
        lambda lanes: _declared(lanes, _WORDS, _words(lanes)),
        pads=True,
    ),
    Product(
        "vpmaddwd of bytes",
        DOT_U8S8,
        (features("avx2"),),
        1.5,
        (4, 8, 16),
        _pairs_of_bytes,
        _declared_pairs,
        direct=False,
        pads=True,
    ),
    Product("vpmaddwd", DOT_WORDS, (features("avx2"),), 1.0, (4, 8, 16), _pairs_of_words, _declared_pairs, pads=True),
)
