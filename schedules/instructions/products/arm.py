"""Arm's instructions of a 128-bit register: DotProd, I8MM and BF16."""

from __future__ import annotations

from schedules.instructions.products.operation import DOT_BF16, DOT_S8S8, DOT_U8S8, MATRIX_S8S8, MATRIX_U8S8
from schedules.instructions.products.product import Product, features
from schedules.instructions.products.quarters import REGISTER_LANES

_CASTS = "  %x = bitcast <4 x i32> %a to <16 x i8>\n  %y = bitcast <4 x i32> %b to <16 x i8>"


def _intrinsic(name: str) -> str:
    return f"@llvm.aarch64.neon.{name}.v4i32.v16i8"


def _call(name: str, total: str, a: str, b: str) -> str:
    return f"call <4 x i32> {_intrinsic(name)}(<4 x i32> {total}, <16 x i8> {a}, <16 x i8> {b})"


def _declared(name: str) -> list[str]:
    return [f"declare <4 x i32> {_intrinsic(name)}(<4 x i32>, <16 x i8>, <16 x i8>)"]


def _direct(name: str, a: str = "%x", b: str = "%y") -> str:
    return f"{_CASTS}\n  %r = {_call(name, '%c', a, b)}"


def _unsigned_by_signed() -> str:
    """`sdot` takes only signed bytes: it accumulates (a - 128) b, and 128 times the sum of b is added, which is
    computed once for all results that share b."""
    return f"""{_CASTS}
  %z = xor <16 x i8> %x, splat (i8 -128)
  %o = {_call("sdot", "zeroinitializer", "splat (i8 1)", "%y")}
  %m = shl <4 x i32> %o, splat (i32 7)
  %t = add <4 x i32> %c, %m
  %r = {_call("sdot", "%t", "%z", "%y")}"""


# A row by `usmmla`, half of whose work is thrown away, takes as long as by `usdot` (llvm-mca: two of either start in a
# cycle on Neoverse N2, four on V1 and V2), so a single row is no case of its own.
_BFDOT = "@llvm.aarch64.neon.bfdot.v4f32.v8bf16"
_NEON, _DOT, _MATRIX = features("neon", "bf16"), features("neon", "dotprod"), features("neon", "dotprod", "i8mm")
PRODUCTS = (
    Product(
        "bfdot",
        DOT_BF16,
        (_NEON,),
        2.0,
        (REGISTER_LANES,),
        lambda _: (
            f"""  %x = bitcast <4 x i32> %a to <8 x bfloat>
  %y = bitcast <4 x i32> %b to <8 x bfloat>
  %r = call <4 x float> {_BFDOT}(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y)"""
        ),
        lambda _: [f"declare <4 x float> {_BFDOT}(<4 x float>, <8 x bfloat>, <8 x bfloat>)"],
    ),
    *(
        Product(
            name,
            operation,
            (_MATRIX,),
            8.0,
            (REGISTER_LANES,),
            lambda _, name=name: _direct(name),  # type: ignore[misc]
            lambda _, name=name: _declared(name),  # type: ignore[misc]
            rows=2,
            depth=8,
        )
        for name, operation in (("usmmla", MATRIX_U8S8), ("smmla", MATRIX_S8S8))
    ),
    Product(
        "usdot", DOT_U8S8, (_MATRIX,), 4.0, (REGISTER_LANES,), lambda _: _direct("usdot"), lambda _: _declared("usdot")
    ),
    # LLVM takes a lane of the second factor as it lies in a register: that is %a, the same for all columns.
    Product(
        "sdot",
        DOT_S8S8,
        (_DOT,),
        4.0,
        (REGISTER_LANES,),
        lambda _: _direct("sdot", "%y", "%x"),
        lambda _: _declared("sdot"),
    ),
    Product(
        "sdot of shifted bytes",
        DOT_U8S8,
        (_DOT,),
        4.0,
        (REGISTER_LANES,),
        lambda _: _unsigned_by_signed(),
        lambda _: _declared("sdot"),
        direct=False,
    ),
)
