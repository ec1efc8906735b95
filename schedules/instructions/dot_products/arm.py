"""Arm's instructions of a 128-bit register: DotProd, I8MM and BF16."""

from __future__ import annotations

from typing import Any

from schedules.instructions.dot_products.operation import (
    DOT_BF16,
    DOT_S8S8,
    DOT_U8S8,
    MATRIX_S8S8,
    MATRIX_U8S8,
    Instruction,
    Operation,
    features,
)

# LLVM IR functions for vectors spanning several 128-bit Arm registers, built from the single-register function.

REGISTER_LANES = 4  # 32-bit lanes


def in_quarters(symbol: str, single: str, lanes: int, scalar: str) -> str:
    """A function (sum, a, b) on `lanes` lanes that calls `single`, a four-lane function, on each run of four. `scalar`:
    LLVM's type of the sum; a and b are 32-bit integers."""
    types = {"c": scalar, "a": "i32", "b": "i32"}
    arguments = ", ".join(f"<{lanes} x {kind}> %{name}" for name, kind in types.items())
    lines = [f"define <{lanes} x {scalar}> @{symbol}({arguments}) alwaysinline nounwind {{"]
    results = []
    for start in range(0, lanes, REGISTER_LANES):
        mask = ", ".join(f"i32 {start + lane}" for lane in range(REGISTER_LANES))
        for name, kind in types.items():
            whole = f"<{lanes} x {kind}>"
            lines.append(f"  %{name}{start} = shufflevector {whole} %{name}, {whole} poison, <4 x i32> <{mask}>")
        part = f"<4 x {scalar}>"
        lines.append(f"  %r{start} = call {part} @{single}({part} %c{start}, <4 x i32> %a{start}, <4 x i32> %b{start})")
        results.append(f"%r{start}")
    return "\n".join([*lines, *_joined(results, scalar), "}"])


def _joined(parts: list[str], scalar: str) -> list[str]:
    """Lines that concatenate four-lane vectors and return the result."""
    lines = []
    vector, size = parts[0], REGISTER_LANES
    for number, part in enumerate(parts[1:]):
        kind = f"<{size} x {scalar}>"
        # Both operands of a shuffle have one length.
        order = ", ".join(f"i32 {lane}" if lane < REGISTER_LANES else "i32 poison" for lane in range(size))
        four = f"<4 x {scalar}>"
        lines.append(f"  %w{number} = shufflevector {four} {part}, {four} poison, <{size} x i32> <{order}>")
        both = ", ".join(f"i32 {lane}" for lane in range(size + REGISTER_LANES))
        mask = f"<{size + REGISTER_LANES} x i32> <{both}>"
        lines.append(f"  %j{number} = shufflevector {kind} {vector}, {kind} %w{number}, {mask}")
        vector, size = f"%j{number}", size + REGISTER_LANES
    return [*lines, f"  ret <{size} x {scalar}> {vector}"]


_CASTS = "  %x = bitcast <4 x i32> %a to <16 x i8>\n  %y = bitcast <4 x i32> %b to <16 x i8>"


def _intrinsic(name: str) -> str:
    return f"@llvm.aarch64.neon.{name}.v4i32.v16i8"


def _call(name: str, total: str, a: str, b: str) -> str:
    return f"call <4 x i32> {_intrinsic(name)}(<4 x i32> {total}, <16 x i8> {a}, <16 x i8> {b})"


def _declared(name: str) -> str:
    return f"declare <4 x i32> {_intrinsic(name)}(<4 x i32>, <16 x i8>, <16 x i8>)"


def _direct(name: str, a: str = "%x", b: str = "%y") -> str:
    return f"{_CASTS}\n  %r = {_call(name, '%c', a, b)}"


def _unsigned_by_signed() -> str:
    """`sdot` supports only signed bytes: accumulate (a - 128) b and add 128 times the sum of b, which is computed once
    for all results that share b."""
    return f"""{_CASTS}
  %z = xor <16 x i8> %x, splat (i8 -128)
  %o = {_call("sdot", "zeroinitializer", "splat (i8 1)", "%y")}
  %m = shl <4 x i32> %o, splat (i32 7)
  %t = add <4 x i32> %c, %m
  %r = {_call("sdot", "%t", "%z", "%y")}"""


# A row by `usmmla`, half of whose work is discarded, takes as long as by `usdot` (llvm-mca: two of either start per
# cycle on Neoverse N2, four on V1 and V2), so a single row needs no special case.
_BFDOT = "@llvm.aarch64.neon.bfdot.v4f32.v8bf16"
_NEON, _DOT, _MATRIX = features("neon", "bf16"), features("neon", "dotprod"), features("neon", "dotprod", "i8mm")


def _product(
    name: str, operation: Operation, needs: frozenset[str], rate: float, body: str, declared: str, **more: Any
) -> Instruction:
    """An instruction on one register."""
    return Instruction(name, operation, (needs,), rate, (REGISTER_LANES,), lambda _: body, lambda _: [declared], **more)


_OF_PAIRS = f"""  %x = bitcast <4 x i32> %a to <8 x bfloat>
  %y = bitcast <4 x i32> %b to <8 x bfloat>
  %r = call <4 x float> {_BFDOT}(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y)"""
_BFDOT_DECLARED = f"declare <4 x float> {_BFDOT}(<4 x float>, <8 x bfloat>, <8 x bfloat>)"
INSTRUCTIONS = (
    _product("bfdot", DOT_BF16, _NEON, 2.0, _OF_PAIRS, _BFDOT_DECLARED),
    _product("usmmla", MATRIX_U8S8, _MATRIX, 8.0, _direct("usmmla"), _declared("usmmla"), rows=2, depth=8),
    _product("smmla", MATRIX_S8S8, _MATRIX, 8.0, _direct("smmla"), _declared("smmla"), rows=2, depth=8),
    _product("usdot", DOT_U8S8, _MATRIX, 4.0, _direct("usdot"), _declared("usdot")),
    # LLVM can index a lane of the second factor directly in a register: that is %a, the same for all columns.
    _product("sdot", DOT_S8S8, _DOT, 4.0, _direct("sdot", "%y", "%x"), _declared("sdot")),
    _product("sdot of shifted bytes", DOT_U8S8, _DOT, 4.0, _unsigned_by_signed(), _declared("sdot"), direct=False),
)
