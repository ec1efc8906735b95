"""The innermost loops of a module's machine code."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import compiler
from targets.cpu.family import CrossToolchain

_BRANCHES = re.compile(r"^(b\.|cb|tb|b$|bge|blt|bne|beq|bgt|ble|bcc|bcs|bhi|bls|bpl|bmi|j$|bnez|beqz|bltu|bgeu)")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop without another one inside."""

    function: str
    operations: tuple[tuple[str, str], ...]

    def count(self, pattern: str) -> int:
        """Number of instructions that match (name and operands)."""
        return sum(bool(re.match(pattern, f"{name} {operands}")) for name, operands in self.operations)

    def share(self, pattern: str) -> float:
        """The part of the instructions that match."""
        return self.count(pattern) / len(self.operations)


def inner_loops(module: compiler.Module, toolchain: CrossToolchain, folder: Path) -> list[Loop]:
    """All innermost loops of the module's kernels."""
    library = folder / "library.so"
    library.write_bytes(module.artifact.library)
    command = [toolchain.program("objdump"), "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loops: list[Loop] = []
    for part in text.split("\n\n"):
        head, _, body = part.strip().partition("\n")
        found = re.match(r"^[0-9a-f]+ <(.+)>:$", head)
        if found:
            loops += _loops(found.group(1), body)
    return loops


def _loops(function: str, body: str) -> list[Loop]:
    lines: list[tuple[int, str, str]] = []
    for line in body.splitlines():
        found = re.match(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", line)
        if found:
            lines.append((int(found.group(1), 16), found.group(2), found.group(3)))
    place = {address: index for index, (address, _, _) in enumerate(lines)}
    spans = []
    for index, (_, name, operands) in enumerate(lines):
        target = re.search(r"([0-9a-f]+) <", operands)
        if _BRANCHES.match(name) and target and place.get(int(target.group(1), 16), index) < index:
            spans.append((place[int(target.group(1), 16)], index))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [Loop(function, tuple((name, operands) for _, name, operands in lines[a : b + 1])) for a, b in inner]
