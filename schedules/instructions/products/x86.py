"""x86's instructions: VNNI (AVX-512 and, of up to 256 bits, AVX), AVX-VNNI-INT8, AVX-512 BF16 and FP16, AVX10.2, and
`vpmaddwd`."""

from __future__ import annotations

from schedules.instructions.llvm_functions import vector
from schedules.instructions.products.operation import (
    DOT_BF16,
    DOT_F16,
    DOT_S8S8,
    DOT_S8U8,
    DOT_U8S8,
    DOT_U8U8,
    DOT_WORDS,
    SUM_F16,
    Operation,
    Product,
    features,
    float16_sums,
    splat,
)

BITS = {4: 128, 8: 256, 16: 512}
"""Width of the registers in bits, by lanes of 32 bits. The lesser widths need AVX512VL or AVX-VNNI."""
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_VNNI = (features("avx512vnni", "avx512vl"), features("avxvnni"))


def _bytes(lanes: int) -> str:
    return f"<{4 * lanes} x i8>"


def _words(lanes: int) -> str:
    return f"<{2 * lanes} x i16>"


def _casts(lanes: int, kind: str) -> str:
    """Both factors cast to a vector type, as %x and %y."""
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
    """Bytes converted to 16 bits, whose products cannot overflow 32 bits in pairs: `vpmaddubsw` takes bytes directly,
    but its sums saturate at 16 bits."""
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


def _halves(name: str, operation: Operation, needs: frozenset[str], intrinsic: str, half: str) -> Product:
    """An instruction on pairs of 16-bit floats that accumulates in float32."""

    def body(lanes: int) -> str:
        f, h = vector("float", lanes), f"<{2 * lanes} x {half}>"
        return f"{_casts(lanes, h)}\n  %r = call {f} @{intrinsic}.{BITS[lanes]}({f} %c, {h} %x, {h} %y)"

    def declared(lanes: int) -> list[str]:
        f, h = vector("float", lanes), f"<{2 * lanes} x {half}>"
        return [f"declare {f} @{intrinsic}.{BITS[lanes]}({f}, {h}, {h})"]

    return Product(name, operation, (needs,), 2.0, (4, 8, 16), body, declared)


def _bytes_as_they_are(name: str, operation: Operation) -> Product:
    """Byte dot products in any signedness: AVX-VNNI-INT8 has registers of up to 256 bits, AVX10.2 of 512 bits."""

    def called(lanes: int) -> str:
        return f"llvm.x86.{'avx10' if lanes == 16 else 'avx2'}.{name}"

    return Product(
        name,
        operation,
        (features("avx10.2"), features("avxvnniint8")),
        4.0,
        (4, 8, 16),
        lambda lanes: _dot_bytes(lanes, called(lanes)),
        lambda lanes: _declared(lanes, called(lanes), _bytes(lanes)),
    )


_UNSIGNED, _WORDS = "llvm.x86.avx512.vpdpbusd", "llvm.x86.avx512.vpdpwssd"
PRODUCTS = (
    _halves("vdpbf16ps", DOT_BF16, features("avx512bf16", "avx512vl"), "llvm.x86.avx512bf16.dpbf16ps", "bfloat"),
    _halves("vdpphps", DOT_F16, features("avx10.2"), "llvm.x86.avx10.vdpphps", "half"),
    # Of 64 steps, the multiplications are 64 of some 74 instructions.
    Product("vfmadd231ph", SUM_F16, (features("avx512fp16", "avx512vl"),), 1.7, (4, 8, 16), float16_sums),
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
    _bytes_as_they_are("vpdpbssd", DOT_S8S8),
    _bytes_as_they_are("vpdpbsud", DOT_S8U8),
    _bytes_as_they_are("vpdpbuud", DOT_U8U8),
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
