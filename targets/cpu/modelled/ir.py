"""LLVM IR parsed from text: control flow (with natural loops) and integers only."""

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
        successors: names, in the order of the branch: the first is taken if `condition` is true.
        condition: the value that a conditional branch or a switch tests; "" otherwise.
        cases: the switch values that lead to the successors after the first.
        weights: weights of the successors from metadata; empty if there are none.
        calls: names of functions of the module that are called, or passed to a callee.
        returns: whether it ends the function.
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
    """A function: its blocks in order, the texts of its values' definitions, and the block of each value."""

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
        match[1]: tuple(int(each) for each in re.findall(r"i32 (\d+)", match[2]))
        for line in lines
        if line.startswith("!") and (match := _WEIGHTS.match(line))
    }
    functions: dict[str, Function] = {}
    function: Function | None = None
    block: Block | None = None
    for line in lines:
        if function is None:
            if match := _DEFINE.match(line):
                function = functions[match[1].strip('"')] = Function(match[1].strip('"'))
                block = None
            continue
        if line.startswith("}"):
            function = None
        elif match := _LABEL.match(line):
            block = function.blocks[match[1]] = Block(match[1])
        elif line.strip() and not line.lstrip().startswith((";", "#dbg")):
            if block is None:
                block = function.blocks[""] = Block("")
            _read(line, function, block, weights)
    _keep_own_calls(functions)
    return functions


def _read(line: str, function: Function, block: Block, weights: dict[str, tuple[int, ...]]) -> None:
    match = _ASSIGN.match(line)
    text = match[2] if match else line.strip()
    if match:
        function.values[match[1]] = text.split(", !")[0]
        function.home[match[1]] = block.name
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


@dataclass
class Loop:
    """A loop: its header, the blocks that jump back to it, all its blocks (including inner loops), its parent."""

    header: str
    latches: set[str] = field(default_factory=set)
    blocks: set[str] = field(default_factory=set)
    parent: Loop | None = None


@dataclass
class Flow:
    """The control flow of a function.

    Attributes:
        order: reachable blocks, each after all its predecessors except over back edges.
        predecessors: predecessors by block.
        loops: loops by header.
        innermost: the innermost loop of each block that is in one.
    """

    order: list[str]
    predecessors: dict[str, list[str]]
    loops: dict[str, Loop]
    innermost: dict[str, Loop]


def flow_of(function: Function) -> Flow:
    """Analyze a function."""
    order = _reverse_postorder(function)
    predecessors: dict[str, list[str]] = {name: [] for name in order}
    for name in order:
        for successor in function.blocks[name].successors:
            predecessors[successor].append(name)
    dominators = _dominators(order, predecessors)
    loops: dict[str, Loop] = {}
    for name in order:
        for successor in function.blocks[name].successors:
            if _dominates(successor, name, dominators):
                loop = loops.setdefault(successor, Loop(successor, blocks={successor}))
                loop.latches.add(name)
                _fill(loop, name, predecessors)
    by_size = sorted(loops.values(), key=lambda loop: len(loop.blocks))
    innermost: dict[str, Loop] = {}
    for index, loop in enumerate(by_size):
        outer = (each for each in by_size[index + 1 :] if loop.header in each.blocks)
        loop.parent = next(outer, None)
        for block in loop.blocks:
            innermost.setdefault(block, loop)
    return Flow(order, predecessors, loops, innermost)


def _reverse_postorder(function: Function) -> list[str]:
    seen: set[str] = {function.entry}
    finished: list[str] = []
    stack = [(function.entry, iter(function.blocks[function.entry].successors))]
    while stack:
        name, successors = stack[-1]
        for successor in successors:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(function.blocks[successor].successors)))
                break
        else:
            finished.append(name)
            stack.pop()
    return finished[::-1]


def _dominators(order: list[str], predecessors: dict[str, list[str]]) -> dict[str, str]:
    """The immediate dominator of each block (Cooper, Harvey and Kennedy 2001); the entry's is itself."""
    number = {name: index for index, name in enumerate(order)}
    dominators = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for name in order[1:]:
            known = [each for each in predecessors[name] if each in dominators]
            new = known[0]
            for predecessor in known[1:]:
                while new != predecessor:
                    while number[predecessor] > number[new]:
                        predecessor = dominators[predecessor]
                    while number[new] > number[predecessor]:
                        new = dominators[new]
            if dominators.get(name) != new:
                dominators[name] = new
                changed = True
    return dominators


def _dominates(above: str, below: str, dominators: dict[str, str]) -> bool:
    while below != above:
        if dominators[below] == below:
            return False
        below = dominators[below]
    return True


def _fill(loop: Loop, latch: str, predecessors: dict[str, list[str]]) -> None:
    waiting = [latch]
    while waiting:
        name = waiting.pop()
        if name not in loop.blocks:
            loop.blocks.add(name)
            waiting += predecessors[name]
