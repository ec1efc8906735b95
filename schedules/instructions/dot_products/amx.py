"""Intel's AMX: instructions that multiply a tile of up to 16 rows of 64 bytes by one of 16 columns.

Sums stay in tiles over the whole depth, so a kernel calls a function for a block of rows, which stores them to memory:

    sums[row, column] = sum over taps (i0, i1, i2) of rows at `a + row * pitch + i0 * s0 + i1 * s1 + i2 * s2`
                        times the weights of the taps, which are consecutive

A tap is 64 bytes of a row. So one function serves matmuls (the taps are blocks of the depth) and convolutions (rows of
the window, its columns, blocks of channels). Weights are packed as for dot products: one word of a group per column.

TVM makes LLVM inline every imported function, and LLVM configures the tiles of a kernel once, with one shape each. So
all tiles are whole: a remainder of rows is computed together with the memory after them, and those sums are discarded.
Callers must allocate room for that.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from schedules.instructions.dot_products.operation import (
    DOT_BF16,
    DOT_F16,
    DOT_S8S8,
    DOT_S8U8,
    DOT_U8S8,
    DOT_U8U8,
    SCALARS,
    Instruction,
    features,
)
from schedules.machine import Machine

ROWS, COLUMNS, ROW_BYTES, STEPS = 16, 16, 64, 16
"""A tile's rows, columns of sums, bytes per row of the left operand, and words per column of the right one."""
BLOCK_ROWS = 2 * ROWS
WIDTHS = (COLUMNS, 2 * COLUMNS)
"""Columns of a panel of weights."""
_PREFIX = "tensorwright_tiles_"
_SHAPE = "i16 16, i16 64"
_ARGUMENTS = "ptr %a, i64 %pitch, i64 %n0, i64 %s0, i64 %n1, i64 %s1, i64 %n2, i64 %s2, ptr %b, i64 %bpitch, ptr %c"

INSTRUCTIONS = tuple(
    Instruction(name, operation, (features("amx-tile", needed),), rate, rows=ROWS, depth=depth, sums="tiles")
    for name, operation, needed, rate, depth in (
        # Rates were measured on matmuls of 512 x 768 x 3072, on one core of a Granite Rapids class processor.
        ("tdpbf16ps", DOT_BF16, "amx-bf16", 5.0, 32),
        ("tdpfp16ps", DOT_F16, "amx-fp16", 5.0, 32),
        ("tdpbusd", DOT_U8S8, "amx-int8", 11.0, 64),
        ("tdpbssd", DOT_S8S8, "amx-int8", 11.0, 64),
        ("tdpbsud", DOT_S8U8, "amx-int8", 11.0, 64),
        ("tdpbuud", DOT_U8U8, "amx-int8", 11.0, 64),
    )
)


def symbol_of(instruction: Instruction, row_tiles: int, width: int) -> str:
    """Symbol of the function for a number of row tiles by a panel of `width` columns."""
    return f"{_PREFIX}{instruction.name}_{ROWS * row_tiles}x{width}"


UNITS = (16, 32)


def unit_symbol(instruction: Instruction, unit: int) -> str:
    """Symbol of the function (a, pitch, b, pitch, sums) of one tile by `unit` bytes of each row: weights have one word
    of four bytes per column, the accumulators are 16 x 16."""
    return f"{_PREFIX}{instruction.name}_unit{unit}"


def definitions(called: Set[str], machine: Machine) -> str:
    """LLVM IR of the tile functions among a kernel's external calls: the AMX instructions or, if generated code may not
    use them, plain code."""
    declared: dict[str, None] = {}  # each once: LLVM rejects duplicates
    texts = []
    for instruction in INSTRUCTIONS:
        sizes = [
            (tiles, width) for tiles in (1, 2) for width in WIDTHS if symbol_of(instruction, tiles, width) in called
        ]
        units = [unit for unit in UNITS if unit_symbol(instruction, unit) in called]
        native = any(machine.executes(*needed) for needed in instruction.needs)
        if (sizes or units) and native:
            declared.update(dict.fromkeys(_DECLARATIONS.format(instruction.name).splitlines()))
        texts += [_plain_dot(instruction)] if (sizes or units) and not native else []
        texts += [_native_text(instruction, *size) if native else _plain_text(instruction, *size) for size in sizes]
        texts += [_native_unit(instruction, unit) if native else _plain_unit(instruction, unit) for unit in units]
    return "\n".join([*declared, *texts, _METADATA]) if texts else ""


_DECLARATIONS = """declare x86_amx @llvm.x86.tileloadd64.internal(i16, i16, ptr, i64)
declare x86_amx @llvm.x86.tilezero.internal(i16, i16)
declare x86_amx @llvm.x86.{}.internal(i16, i16, i16, x86_amx, x86_amx, x86_amx)
declare void @llvm.x86.tilestored64.internal(i16, i16, ptr, i64, x86_amx)"""


def _native_text(instruction: Instruction, row_tiles: int, width: int) -> str:
    """Code for `row_tiles` row tiles by a panel."""
    points = [(i, j) for i in range(row_tiles) for j in range(width // COLUMNS)]
    load = "call x86_amx @llvm.x86.tileloadd64.internal"
    dot = f"call x86_amx @llvm.x86.{instruction.name}.internal(i16 16, i16 64, i16 64, x86_amx"
    lines = [
        f"define i32 @{symbol_of(instruction, row_tiles, width)}({_ARGUMENTS}) nounwind {{",
        "head:",
        *_TAP_STEPS,
        "  %apart = mul i64 %pitch, 16",
        "  %a1 = getelementptr i8, ptr %a, i64 %apart",
        *(f"  %z{i}{j} = call x86_amx @llvm.x86.tilezero.internal({_SHAPE})" for i, j in points),
        "  br label %loop",
        "loop:",
        *_tap_phis("head", "loop"),
        *(f"  %s{i}{j} = phi x86_amx [ %z{i}{j}, %head ], [ %t{i}{j}, %loop ]" for i, j in points),
        "  %bo = mul i64 %tap, %bstep",
    ]
    for i in range(row_tiles):
        lines += [
            f"  %ap{i} = getelementptr i8, ptr %a{i or ''}, i64 %offset",
            f"  %ta{i} = {load}({_SHAPE}, ptr %ap{i}, i64 %pitch)",
        ]
        for j in range(width // COLUMNS):
            if i == 0:
                lines += [
                    f"  %bj{j} = add i64 %bo, {ROW_BYTES * j}",
                    f"  %bp{j} = getelementptr i8, ptr %b, i64 %bj{j}",
                    f"  %tb{j} = {load}({_SHAPE}, ptr %bp{j}, i64 %bpitch)",
                ]
            lines.append(f"  %t{i}{j} = {dot} %s{i}{j}, x86_amx %ta{i}, x86_amx %tb{j})")
    lines += [*_tap_end("loop"), "done:"]
    for i, j in points:
        lines += [
            f"  %cp{i}{j} = getelementptr i8, ptr %c, i64 {ROWS * 4 * width * i + ROW_BYTES * j}",
            f"  call void @llvm.x86.tilestored64.internal({_SHAPE}, ptr %cp{i}{j}, i64 {4 * width}, x86_amx %t{i}{j})",
        ]
    return "\n".join([*lines, "  ret i32 0", "}"])


_UNIT_ARGUMENTS = "ptr %a, i64 %pitch, ptr %b, i64 %bpitch, ptr %c"


def _native_unit(instruction: Instruction, unit: int) -> str:
    load, shapes = "call x86_amx @llvm.x86.tileloadd64.internal", f"i16 {ROWS}, i16 {ROW_BYTES}, i16 {unit}"
    return f"""define i32 @{unit_symbol(instruction, unit)}({_UNIT_ARGUMENTS}) nounwind {{
  %z = call x86_amx @llvm.x86.tilezero.internal({_SHAPE})
  %ta = {load}(i16 {ROWS}, i16 {unit}, ptr %a, i64 %pitch)
  %tb = {load}(i16 {unit // 4}, i16 {ROW_BYTES}, ptr %b, i64 %bpitch)
  %t = call x86_amx @llvm.x86.{instruction.name}.internal({shapes}, x86_amx %z, x86_amx %ta, x86_amx %tb)
  call void @llvm.x86.tilestored64.internal({_SHAPE}, ptr %c, i64 {ROW_BYTES}, x86_amx %t)
  ret i32 0
}}"""


# A word of the left operand's row, broadcast to all lanes, and the offset of the right operand's column.
_SPREAD_WORD = """  %apw = getelementptr i32, ptr %ap, i64 %step
  %word = load i32, ptr %apw, align 1
  %single = insertelement <16 x i32> poison, i32 %word, i32 0
  %spread = shufflevector <16 x i32> %single, <16 x i32> poison, <16 x i32> zeroinitializer
  %bs = mul i64 %step, %bpitch"""


def _plain_unit(instruction: Instruction, unit: int) -> str:
    """Plain code, row by row."""
    operation = instruction.operation
    words = "<16 x i32>"
    return f"""define i32 @{unit_symbol(instruction, unit)}({_UNIT_ARGUMENTS}) nounwind {{
entry:
  br label %outer
outer:
  %row = phi i64 [ 0, %entry ], [ %next_row, %tail ]
  %ao = mul i64 %row, %pitch
  %ap = getelementptr i8, ptr %a, i64 %ao
  br label %inner
inner:
  %step = phi i64 [ 0, %outer ], [ %next_step, %inner ]
  %held = phi {words} [ zeroinitializer, %outer ], [ %sum, %inner ]
{_SPREAD_WORD}
  %bp = getelementptr i8, ptr %b, i64 %bs
  %column = load {words}, ptr %bp, align 4
  %sum = call {words} @tensorwright_tiles_{operation.short}_x16({words} %held, {words} %spread, {words} %column)
  %next_step = add i64 %step, 1
  %inside = icmp ult i64 %next_step, {unit // 4}
  br i1 %inside, label %inner, label %tail, !llvm.loop !0
tail:
  %co = mul i64 %row, {ROW_BYTES}
  %cp = getelementptr i8, ptr %c, i64 %co
  store {words} %sum, ptr %cp, align 4
  %next_row = add i64 %row, 1
  %again = icmp ult i64 %next_row, {ROWS}
  br i1 %again, label %outer, label %end
end:
  ret i32 0
}}"""


# Number of taps, the offset correction at the end of a run of the inner ones, and bytes of weights.
_TAP_STEPS = (
    "  %n12 = mul i64 %n1, %n2",
    "  %taps = mul i64 %n0, %n12",
    "  %back2 = mul i64 %n2, %s2",
    "  %back1 = mul i64 %n1, %s1",
    f"  %bstep = mul i64 %bpitch, {STEPS}",
)
_METADATA = """!0 = distinct !{!0, !1}
!1 = !{!"llvm.loop.unroll.disable"}
"""


def _tap_phis(before: str, last: str) -> list[str]:
    """Phi nodes of a tap: its index, its offset, and its indices in the inner dimensions."""
    names = {"tap": "next_tap", "offset": "next_offset", "i2": "j2", "i1": "j1"}
    return [f"  %{name} = phi i64 [ 0, %{before} ], [ %{after}, %{last} ]" for name, after in names.items()]


def _tap_end(label: str) -> list[str]:
    """Advance to the next tap, and branch to it or out of the loop."""
    return [
        "  %k2 = add i64 %i2, 1",
        "  %wrap2 = icmp eq i64 %k2, %n2",
        "  %j2 = select i1 %wrap2, i64 0, i64 %k2",
        "  %one = zext i1 %wrap2 to i64",
        "  %k1 = add i64 %i1, %one",
        "  %wrap1 = icmp eq i64 %k1, %n1",
        "  %j1 = select i1 %wrap1, i64 0, i64 %k1",
        "  %o2 = add i64 %offset, %s2",
        "  %r2 = sub i64 %o2, %back2",
        "  %o1 = add i64 %r2, %s1",
        "  %r1 = sub i64 %o1, %back1",
        "  %o0 = add i64 %r1, %s0",
        "  %p1 = select i1 %wrap1, i64 %o0, i64 %o1",
        "  %next_offset = select i1 %wrap2, i64 %p1, i64 %o2",
        "  %next_tap = add i64 %tap, 1",
        "  %more = icmp ult i64 %next_tap, %taps",
        f"  br i1 %more, label %{label}, label %done, !llvm.loop !0",
    ]


def _plain_dot(instruction: Instruction) -> str:
    """Dot products of sixteen columns, as a separate function next to the one for vectors."""
    operation = replace(instruction.operation, short=f"tiles_{instruction.operation.short}")
    assert operation.plain is not None
    return operation.function(COLUMNS, operation.plain(COLUMNS))


def _plain_text(instruction: Instruction, row_tiles: int, width: int) -> str:
    """Plain code, row by row, sixteen columns at a time."""
    operation, scalar = instruction.operation, SCALARS[instruction.operation.total]
    total, words = f"<16 x {scalar}>", "<16 x i32>"
    halves = width // COLUMNS
    steps, phis, end = "\n".join(_TAP_STEPS), "\n".join(_tap_phis("head", "tail")), "\n".join(_tap_end("outer"))
    return f"""define i32 @{symbol_of(instruction, row_tiles, width)}({_ARGUMENTS}) nounwind {{
entry:
{steps}
  br label %head
head:
  %at = phi i64 [ 0, %entry ], [ %next_at, %done ]
  %row = udiv i64 %at, {halves}
  %half = urem i64 %at, {halves}
  %ao = mul i64 %row, %pitch
  %a0 = getelementptr i8, ptr %a, i64 %ao
  %bh = mul i64 %half, {ROW_BYTES}
  %b0 = getelementptr i8, ptr %b, i64 %bh
  br label %outer
outer:
{phis}
  %carried = phi {total} [ zeroinitializer, %head ], [ %sum, %tail ]
  %ap = getelementptr i8, ptr %a0, i64 %offset
  %bo = mul i64 %tap, %bstep
  %bp = getelementptr i8, ptr %b0, i64 %bo
  br label %inner
inner:
  %step = phi i64 [ 0, %outer ], [ %next_step, %inner ]
  %held = phi {total} [ %carried, %outer ], [ %sum, %inner ]
{_SPREAD_WORD}
  %bpw = getelementptr i8, ptr %bp, i64 %bs
  %column = load {words}, ptr %bpw, align 4
  %sum = call {total} @tensorwright_tiles_{operation.short}_x16({total} %held, {words} %spread, {words} %column)
  %next_step = add i64 %step, 1
  %inside = icmp ult i64 %next_step, {STEPS}
  br i1 %inside, label %inner, label %tail, !llvm.loop !0
tail:
{end}
done:
  %cr = mul i64 %row, {4 * width}
  %ch = add i64 %cr, %bh
  %cp = getelementptr i8, ptr %c, i64 %ch
  store {total} %sum, ptr %cp, align 4
  %next_at = add i64 %at, 1
  %again = icmp ult i64 %next_at, {ROWS * row_tiles * halves}
  br i1 %again, label %head, label %end
end:
  ret i32 0
}}"""
