"""LLVM IR read from text, as far as control flow and integers go."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_DEFINE = re.compile(r"^define .*?@([\w.$\"-]+)\((.*)\)")
_LABEL = re.compile(r"^([\w.$-]+):")
_ASSIGN = re.compile(r"^\s+(%[\w.$-]+) = (.*)$")
_TARGETS = re.compile(r"label %([\w.$-]+)")
_CASE = re.compile(r"^i\d+ (-?\d+), label %([\w.$-]+)")
_PROFILE = re.compile(r"!prof !(\d+)")
_WEIGHTS = re.compile(r'^!(\d+) = .*!\{!"branch_weights"((?:, (?:!"expected"|i32 \d+))+)\}')
_SYMBOL = re.compile(r"@([\w.$-]+)")


@dataclass
class Block:
    """A basic block.

    Attributes:
        successors: names, in the order of the branch: the first is taken where `condition` is true.
        condition: the value that a conditional branch or a switch tests; "" otherwise.
        cases: of a switch, the values that lead to the successors after the first.
        weights: weights of the successors by metadata; empty where there are none.
        calls: names of functions of the module that are called, or handed to what is called.
        returns: it ends the function.
    """

    name: str
    successors: tuple[str, ...] = ()
    condition: str = ""
    cases: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    calls: tuple[str, ...] = ()
    returns: bool = False


@dataclass
class Function:
    """A function: its blocks in order, the texts of its values' definitions, and the block that each is in."""

    name: str
    blocks: dict[str, Block] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The name of the first block."""
        return next(iter(self.blocks))


def parse(text: str) -> dict[str, Function]:
    """The functions that a module defines, by name."""
    lines = text.splitlines()
    weights = {
        found[1]: tuple(int(each) for each in re.findall(r"i32 (\d+)", found[2]))
        for line in lines
        if line.startswith("!") and (found := _WEIGHTS.match(line))
    }
    functions: dict[str, Function] = {}
    function: Function | None = None
    block: Block | None = None
    for line in lines:
        if function is None:
            if found := _DEFINE.match(line):
                function = functions[found[1].strip('"')] = Function(found[1].strip('"'))
                block = None
            continue
        if line.startswith("}"):
            function = None
        elif found := _LABEL.match(line):
            block = function.blocks[found[1]] = Block(found[1])
        elif line.strip() and not line.lstrip().startswith((";", "#dbg")):
            if block is None:
                block = function.blocks[""] = Block("")
            _read(line, function, block, weights)
    _keep_own_calls(functions)
    return functions


def _read(line: str, function: Function, block: Block, weights: dict[str, tuple[int, ...]]) -> None:
    found = _ASSIGN.match(line)
    text = found[2] if found else line.strip()
    if found:
        function.values[found[1]] = text.split(", !")[0]
        function.home[found[1]] = block.name
    if text.startswith("br "):
        block.successors = tuple(_TARGETS.findall(text))
        block.condition = text.split(",")[0].removeprefix("br i1 ") if text.startswith("br i1") else ""
        profile = _PROFILE.search(text)
        block.weights = weights.get(profile[1], ()) if profile else ()
    elif text.startswith("switch "):
        block.condition = text.split(",")[0].split()[-1]
        block.successors = tuple(_TARGETS.findall(text))
    elif found_case := _CASE.match(text):
        block.cases += (int(found_case[1]),)
        block.successors += (found_case[2],)
    elif text.startswith(("ret ", "unreachable")):
        block.returns = True
    elif "call " in text:
        block.calls += tuple(_SYMBOL.findall(text))


def _keep_own_calls(functions: dict[str, Function]) -> None:
    for function in functions.values():
        for block in function.blocks.values():
            block.calls = tuple(name for name in block.calls if name in functions)
