"""Assembly with LLVM's comments, which name the block of LLVM IR that each machine block comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_FUNCTION = re.compile(r"^([\w.$]+):")
_BLOCK = re.compile(r"^(?:(\.LBB\d+_\d+):|\s*(?:#|//) %bb\.\d+:)(?:\s*(?:#|//) (?:%(\S+))?)?")
_INSTRUCTION = re.compile(r"^\t([a-z][\w.]*)(?:\s+(.*))?$")
_COMMENT = re.compile(r"\s*(?:#|//)(?=\s| ).*$")
_END = re.compile(r"^\.Lfunc_end\d+:")


@dataclass
class MachineBlock:
    """A machine block: its label ("" where nothing jumps to it), the IR block it comes from, its instructions."""

    function: str
    label: str
    source: str
    instructions: list[str] = field(default_factory=list)


def parse(text: str, functions: Mapping[str, object]) -> list[MachineBlock]:
    """The machine blocks of functions of an assembly text, in order. A block whose source is not named, which code
    generation added, has the one before it."""
    blocks: list[MachineBlock] = []
    function, source = "", ""
    for line in text.splitlines():
        if _END.match(line):
            function = ""
        elif found := _BLOCK.match(line):
            if function:
                source = found[2] or source
                blocks.append(MachineBlock(function, found[1] or "", source))
        elif (found := _FUNCTION.match(line.removeprefix(".L") if line.startswith(".L__") else line)) is not None:
            if found[1] in functions:
                function, source = found[1], ""
        elif function and blocks and (found := _INSTRUCTION.match(line)):
            blocks[-1].instructions.append(_COMMENT.sub("", line.strip()))
    return [block for block in blocks if block.instructions]
