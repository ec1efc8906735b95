"""Natural loops of a control flow graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from targets.cpu.modelled.ir import Function


@dataclass
class Loop:
    """A loop: its header, the blocks that jump back to it, all its blocks (those of inner loops too), its parent."""

    header: str
    latches: set[str] = field(default_factory=set)
    blocks: set[str] = field(default_factory=set)
    parent: Loop | None = None


@dataclass
class Flow:
    """The control flow of a function.

    Attributes:
        order: blocks that can be reached, each after all that lead to it except over back edges.
        predecessors: by block.
        loops: by header.
        innermost: the innermost loop of each block that is in one.
    """

    order: list[str]
    predecessors: dict[str, list[str]]
    loops: dict[str, Loop]
    innermost: dict[str, Loop]


def flow_of(function: Function) -> Flow:
    """Analyse a function."""
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
    found = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for name in order[1:]:
            known = [each for each in predecessors[name] if each in found]
            new = known[0]
            for each in known[1:]:
                while new != each:
                    while number[each] > number[new]:
                        each = found[each]
                    while number[new] > number[each]:
                        new = found[new]
            if found.get(name) != new:
                found[name] = new
                changed = True
    return found


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
