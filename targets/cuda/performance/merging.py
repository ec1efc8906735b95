"""Merging of shared memory accesses by NVIDIA's assembler: it joins accesses to neighbours in PTX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from targets.cuda.performance.ptx import TYPE_BYTES, Instruction

_ADDRESS = re.compile(r"\[(%\w+)(?:\+(-?\d+))?\]")
_WIDEST = 16
_REGISTER = re.compile(r"%\w+")
_ENDS = ("bar", "barrier", "bra", "ret", "exit", "wmma", "ldmatrix", "atom", "red", "membar", "fence")


def with_joined_accesses(block: Sequence[Instruction]) -> list[Instruction]:
    """A basic block in which loads from, or stores to, neighbouring places of shared memory are vectors."""
    joined: dict[int, Instruction | None] = {}
    group: dict[tuple[str, tuple[str, ...]], dict[int, int]] = {}

    def close(keys: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        for key in keys:
            joined.update(_joined(block, key, group.pop(key)))

    for place, instruction in enumerate(block):
        opcode = instruction.opcode
        found = _scalar_access(instruction)
        if opcode[0] in _ENDS:
            close(list(group))
        elif opcode[0] == "st" and (found is None or "shared" in opcode):
            close([key for key in group if key[1][0] == "ld"])
        elif opcode[0] == "ld" and "shared" in opcode:
            close([key for key in group if key[1][0] == "st"])
        if found is not None:
            base, offset = found
            group.setdefault((base, opcode), {}).setdefault(offset, place)
        written = (
            set(_REGISTER.findall(instruction.operands[0])) if instruction.operands and opcode[0] != "st" else set()
        )
        close([key for key in group if key[0] in written])
    close(list(group))
    kept = (joined.get(place, instruction) for place, instruction in enumerate(block))
    return [instruction for instruction in kept if instruction is not None]


def _scalar_access(instruction: Instruction) -> tuple[str, int] | None:
    """Base register and offset of an unconditional access of one number in shared memory."""
    opcode = instruction.opcode
    if opcode[0] not in ("ld", "st") or opcode[1] != "shared" or len(opcode) != 3 or instruction.predicate:
        return None
    operand = instruction.operands[1 if opcode[0] == "ld" else 0]
    match = _ADDRESS.fullmatch(operand.replace(" ", ""))
    return None if match is None else (match[1], int(match[2] or 0))


def _joined(
    block: Sequence[Instruction], key: tuple[str, tuple[str, ...]], places: dict[int, int]
) -> dict[int, Instruction | None]:
    """The vectors in place of a group's first accesses, None in place of the others."""
    base, opcode = key
    size = TYPE_BYTES.get(re.sub(r"\D", "", opcode[2]), 4)
    found: dict[int, Instruction | None] = {}
    taken: set[int] = set()
    for lanes in (4, 2):
        if lanes * size > _WIDEST:
            continue
        for offset in sorted(places):
            run = [offset + size * each for each in range(lanes)]
            if offset % (lanes * size) or any(each in taken or each not in places for each in run):
                continue
            taken.update(run)
            members = sorted(places[each] for each in run)
            values = [block[places[each]].operands[0 if opcode[0] == "ld" else 1] for each in run]
            vector, address = "{" + ", ".join(values) + "}", f"[{base}+{offset}]"
            operands = (vector, address) if opcode[0] == "ld" else (address, vector)
            found |= dict.fromkeys(members)
            found[members[-1 if opcode[0] == "st" else 0]] = Instruction(
                (opcode[0], "shared", f"v{lanes}", opcode[2]), operands
            )
    return found
