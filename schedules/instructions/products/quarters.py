"""LLVM IR functions for vectors spanning several 128-bit Arm registers, built from the single-register function."""

from __future__ import annotations

REGISTER_LANES = 4  # 32-bit lanes


def in_quarters(symbol: str, single: str, lanes: int, scalar: str) -> str:
    """A function (sum, a, b) on `lanes` lanes that calls `single`, a four-lane function, on each run of four.

    Args:
        scalar: LLVM's type of the sum; a and b are 32-bit integers.
    """
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
    whole, size = parts[0], REGISTER_LANES
    for number, part in enumerate(parts[1:]):
        kind = f"<{size} x {scalar}>"
        # Both operands of a shuffle have one length.
        order = ", ".join(f"i32 {lane}" if lane < REGISTER_LANES else "i32 poison" for lane in range(size))
        four = f"<4 x {scalar}>"
        lines.append(f"  %w{number} = shufflevector {four} {part}, {four} poison, <{size} x i32> <{order}>")
        both = ", ".join(f"i32 {lane}" for lane in range(size + REGISTER_LANES))
        mask = f"<{size + REGISTER_LANES} x i32> <{both}>"
        lines.append(f"  %j{number} = shufflevector {kind} {whole}, {kind} %w{number}, {mask}")
        whole, size = f"%j{number}", size + REGISTER_LANES
    return [*lines, f"  ret <{size} x {scalar}> {whole}"]
