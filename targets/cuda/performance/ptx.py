"""Reads PTX, the assembly that nvcc writes: kernels, their variables and their basic blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from targets.errors import TargetError

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)")
_VARIABLE = re.compile(r"\.(shared|local|global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
_BLOCK_SIZE = re.compile(r"\.(?:max|req)ntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_LABEL = re.compile(r"\s*([\w$]+):")
_INSTRUCTION = re.compile(r"\s*(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)\s*", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
TYPE_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: with its suffixes ("ld.global.nc.v4.f32"), split at the dots.
        operands: as written; vectors with braces and addresses with brackets.
        predicate, negated: the instruction runs where the register is set (not set).
    """

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str = ""
    negated: bool = False


@dataclass(frozen=True)
class Variable:
    """Memory that a kernel declares: its space, alignment and size in bytes."""

    name: str
    space: str
    align: int
    nbytes: int


@dataclass
class Kernel:
    """A kernel: `blocks` are its basic blocks in order, `labels` the block that each label names.

    Attributes:
        parameters: (type, name), in order.
        threads: threads per block as declared by the source; 1 if it does not say.
    """

    name: str
    parameters: list[tuple[str, str]]
    threads: int
    variables: list[Variable] = field(default_factory=list)
    blocks: list[list[Instruction]] = field(default_factory=lambda: [[]])
    labels: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> list[Kernel]:
    """The kernels of a PTX module.

    Raises:
        TargetError: something is not understood.
    """
    text = _COMMENT.sub("", text)
    outside, kernels, end = [], [], 0
    for match in _ENTRY.finditer(text):
        outside.append(text[end : match.start()])
        end = _closing(text, match.end())
        size = _BLOCK_SIZE.search(match[3])
        threads = 1
        for each in size.groups() if size else ():
            threads *= int(each or 1)
        kernel = Kernel(match[1], [(kind, name) for kind, name in _PARAMETER.findall(match[2])], threads)
        _read_body(text[match.end() : end - 1], kernel)
        kernels.append(kernel)
    for each in _VARIABLE.finditer("".join(outside)):
        for kernel in kernels:
            kernel.variables.append(_variable(each))
    return kernels


def _closing(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.end()
    raise TargetError("a kernel of nvcc's PTX does not end", "report it with the version of nvcc")


def _read_body(body: str, kernel: Kernel) -> None:
    # Braces around statements (inline assembly, calls) end where a statement does; those of vectors do not.
    body = re.sub(r"(^|[;{}:])(\s*)\{", r"\1\2", body)
    body = re.sub(r";(\s*)\}", r";\1", body)
    for statement in body.split(";"):
        while label := _LABEL.match(statement):
            if kernel.blocks[-1]:
                kernel.blocks.append([])
            kernel.labels[label[1]] = len(kernel.blocks) - 1
            statement = statement[label.end() :]
        statement = statement.strip().removeprefix("}").strip()
        if not statement:
            continue
        if statement.startswith("."):
            if found := _VARIABLE.match(statement):
                kernel.variables.append(_variable(found))
            continue
        instruction = _instruction(statement)
        kernel.blocks[-1].append(instruction)
        if instruction.opcode[0] in ("bra", "ret", "exit"):
            kernel.blocks.append([])


def _instruction(statement: str) -> Instruction:
    match = _INSTRUCTION.fullmatch(statement)
    if match is None:
        raise TargetError(
            f"an instruction of nvcc's PTX is not understood: {statement[:80]}", "report it with the version of nvcc"
        )
    operands = tuple(each.strip() for each in _OPERAND.findall(match[4]))
    return Instruction(tuple(match[3].split(".")), operands, match[2] or "", match[1] == "!")


def _variable(match: re.Match[str]) -> Variable:
    element = TYPE_BYTES.get(re.sub(r"\D", "", match[3]), 4)
    count = int(match[5] or 0) if match[5] is not None else 1
    return Variable(match[4], match[1], int(match[2] or 1), element * count)
