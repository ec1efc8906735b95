"""Multiply-accumulate instructions of all processors, selection for a machine, and the LLVM IR that a kernel needs.

Rules, passes and cost models query a machine's instructions here; a new instruction is one more entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import cache

from schedules.instructions.dot_products import amx, arm, x86
from schedules.instructions.dot_products.arm import REGISTER_LANES, in_quarters
from schedules.instructions.dot_products.operation import DOT_BF16, OPERATIONS, SCALARS, Instruction, Operation
from schedules.instructions.llvm_functions import symbol, vector
from schedules.machine import Machine

INSTRUCTIONS: tuple[Instruction, ...] = (*amx.INSTRUCTIONS, *x86.INSTRUCTIONS, *arm.INSTRUCTIONS)
"""Instructions of all processors; among those for one operation, the preferred one comes first."""


def dot_instructions(machine: Machine, a: str, b: str) -> tuple[Instruction, ...]:
    """The machine's instructions for operands of two dtypes: first those for exactly these dtypes, then those that need
    bytes of the other signedness shifted; otherwise in table order."""
    found = [each for each in INSTRUCTIONS if each.direct and each.operation.takes(a, b) and _has(machine, each)]
    return tuple(sorted(found, key=lambda each: each.operation.a != a))


def vector_instructions(machine: Machine, a: str, b: str) -> tuple[Instruction, ...]:
    """The instructions among `dot_instructions` that accumulate in vector lanes."""
    return tuple(each for each in dot_instructions(machine, a, b) if each.rows == 1)


def matrix_instruction(machine: Machine, a: str, b: str) -> Instruction | None:
    """The first instruction among `dot_instructions` that multiplies rows by columns of registers, or None."""
    return next((each for each in dot_instructions(machine, a, b) if each.rows > 1 and each.sums == "vectors"), None)


def tile_instruction(machine: Machine, operation: Operation) -> Instruction | None:
    """The instruction that computes an operation with tile accumulators, or None."""
    found = (each for each in INSTRUCTIONS if each.sums == "tiles" and each.operation is operation)
    return next((each for each in found if _has(machine, each)), None)


def operation_of(machine: Machine, a: str, b: str) -> Operation:
    """The operation that multiplies operands of two dtypes: that of the machine's first instruction, otherwise one
    emulated by plain code or other instructions."""
    found = dot_instructions(machine, a, b)
    return found[0].operation if found else next(each for each in OPERATIONS if each.takes(a, b))


def partial_operation(machine: Machine, operation: Operation) -> Operation | None:
    """`Operation.partial` if it is the machine's fastest way to accumulate in vectors."""
    found = vector_instructions(machine, operation.a, operation.b) if operation.partial is not None else ()
    return operation.partial if found and found[0].operation is operation.partial else None


def halves_pay(machine: Machine, operation: Operation, *, in_tiles: bool = True) -> bool:
    """True if 16-bit float dot products are faster than float32; `in_tiles`: if accumulators may be in tiles."""
    found = (dot_instructions if in_tiles else vector_instructions)(machine, operation.a, operation.b)
    has = machine.bf16_dot_product if operation is DOT_BF16 else machine.float16_product
    return has and (not found or any(each.rate_on(machine) > 1 for each in found))


def multiplies_bytes(machine: Machine) -> bool:
    """True if byte dot products are faster than float32, not just smaller."""
    return bool(dot_instructions(machine, "uint8", "int8"))


def widens_bytes(machine: Machine) -> bool:
    """True if bytes are best converted to 16 bits once: the machine has dot products of 16-bit integers, but not of
    bytes."""
    return not multiplies_bytes(machine) and bool(dot_instructions(machine, "int16", "int16"))


def sums_signed(machine: Machine) -> bool:
    """True if vector instructions multiply signed bytes without a shift."""
    return any(each.operation.a == "int8" for each in vector_instructions(machine, "int8", "int8"))


def _has(machine: Machine, instruction: Instruction) -> bool:
    return any(machine.has(*needed) for needed in instruction.needs)


def definitions(called: Set[str], lanes: Iterable[int], machine: Machine) -> str:
    """LLVM IR of the operations that a kernel calls, for these numbers of lanes."""
    found = tuple(each for each in OPERATIONS if each.name in called)
    names = tuple(_instruction(machine, each) for each in found)
    return _definitions(found, names, tuple(sorted(set(lanes))), machine.executes("avx512bw")) if found else ""


def _instruction(machine: Machine, operation: Operation) -> str | None:
    """The instruction used for an operation in generated code; None for plain code."""
    found = (each for each in INSTRUCTIONS if each.operation is operation and each.lanes)
    return next((each.name for each in found if any(machine.executes(*needed) for needed in each.needs)), None)


@cache
def _definitions(
    operations: tuple[Operation, ...], names: tuple[str | None, ...], lanes: tuple[int, ...], wide: bool
) -> str:
    declarations: dict[str, None] = {}
    functions: list[str] = []
    by_name = {(each.operation, each.name): each for each in INSTRUCTIONS}
    for operation, name in zip(operations, names, strict=True):
        instruction = by_name[operation, name] if name is not None else None
        widths = [] if instruction is None else [each for each in instruction.lanes if wide or each < 16]
        counts = _with_hosts(lanes, instruction, widths)
        for count in counts:
            if instruction is not None and count in widths:
                declarations.update(dict.fromkeys(instruction.declarations(count)))
            text = _function(operation, instruction, count, widths)
            functions += [text] if text else []
    return "\n".join([*declarations, *functions, ""])


def _with_hosts(lanes: tuple[int, ...], instruction: Instruction | None, widths: list[int]) -> list[int]:
    """The numbers of lanes, and those of the functions that they call."""
    hosts = (_host(each, instruction, widths) for each in lanes)
    return sorted({*lanes, *(host for host in hosts if host is not None)})


def _host(count: int, instruction: Instruction | None, widths: list[int]) -> int | None:
    """The width of the instruction used to compute another number of lanes."""
    if instruction is None or count in widths:
        return None
    if widths == [REGISTER_LANES] and count > REGISTER_LANES and count % REGISTER_LANES == 0:
        return REGISTER_LANES
    return next((each for each in widths if each > count), None) if instruction.pads else None


def _function(operation: Operation, instruction: Instruction | None, count: int, widths: list[int]) -> str:
    host = _host(count, instruction, widths)
    if instruction is not None and count in widths:
        return operation.function(count, instruction.body(count))
    if host is None:
        return operation.function(count, operation.plain(count)) if operation.plain is not None else ""
    if host < count:
        scalar = SCALARS[operation.total]
        return in_quarters(symbol(operation.short, count), symbol(operation.short, host), count, scalar)
    return _padded(operation, count, host)


def _padded(operation: Operation, lanes: int, wide: int) -> str:
    """A function of few lanes, computed by a wider one. With scalar code, LLVM 22 combines rows of dot products
    incorrectly: 3 of 7 rows with one column of depth 16 were wrong."""
    name = operation.short
    i, w = vector("i32", lanes), vector("i32", wide)
    lines = [f"define {i} @{symbol(name, lanes)}({i} %c, {i} %a, {i} %b) alwaysinline nounwind {{"]
    positions = ", ".join(f"i32 {min(lane, lanes)}" for lane in range(wide))
    for operand in "cab":
        if lanes == 1:
            lines.append(f"  %{operand}w = insertelement {w} zeroinitializer, i32 %{operand}, i32 0")
        else:
            lines.append(
                f"  %{operand}w = shufflevector {i} %{operand}, {i} zeroinitializer, <{wide} x i32> <{positions}>"
            )
    lines.append(f"  %rw = call {w} @{symbol(name, wide)}({w} %cw, {w} %aw, {w} %bw)")
    if lanes == 1:
        lines.append(f"  %r = extractelement {w} %rw, i32 0")
    else:
        kept = ", ".join(f"i32 {lane}" for lane in range(lanes))
        lines.append(f"  %r = shufflevector {w} %rw, {w} poison, <{lanes} x i32> <{kept}>")
    return "\n".join([*lines, f"  ret {i} %r", "}"])
