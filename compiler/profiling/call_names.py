"""Nodes of the model that the calls of a run compute, by the list of calls in the manifest.

Calls of one kernel are told apart by their order: those of each function of the module follow its list.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.artifact.manifest import CallList
from compiler.profiling.instrument import DYNAMIC_CALL, Call

ENTRY = "main"
Step = Any  # of `CallList.functions`
Names = Callable[[], frozenset[str]]


@dataclass(frozen=True)
class NamedCall:
    """A call of a run, identified in the module.

    Attributes:
        kernel: its name, of kernels with dynamic sizes too, whose calls TVM does not name.
        nodes: nodes of the model, the main one first; empty where not known.
        place: equal for the calls from one place in the code; of calls without a place, those of one kernel.
    """

    kernel: str
    nodes: tuple[str, ...]
    place: tuple[str, int]


def named_calls(calls: Sequence[Call], listed: CallList | None) -> list[NamedCall]:
    """Identify each call of a run."""
    found = [NamedCall(call.name, (), (call.name, -1)) for call in calls]
    if listed is None:
        return found
    children: dict[int | None, list[int]] = {}
    for index, call in enumerate(calls):
        children.setdefault(call.parent, []).append(index)
    frames: list[tuple[int | None, str]] = [(None, ENTRY)]
    frames += [(index, calls[index].name) for index in children if index is not None]
    for parent, function in frames:
        steps = listed.functions.get(function)
        if steps is not None:
            stream = list(_calls_of(parent, children, calls, listed))
            for index, place, (callee, *nodes) in _Matching(calls, listed, stream).matched(steps):
                names = tuple(listed.nodes[node] for node in nodes)
                found[index] = NamedCall(listed.callees[callee], names, (function, place))
    return found


def _calls_of(
    parent: int | None, children: dict[int | None, list[int]], calls: Sequence[Call], listed: CallList
) -> Iterator[int]:
    """The calls made from a function, and by functions that passes made of its parts."""
    for index in children.get(parent, ()):
        if index in children and calls[index].name not in listed.functions:
            yield from _calls_of(index, children, calls, listed)
        else:
            yield index


class _Matching:
    """Walks through the calls of a function and its steps in parallel."""

    def __init__(self, calls: Sequence[Call], listed: CallList, stream: list[int]) -> None:
        known = {*listed.callees, DYNAMIC_CALL}
        self._stream = [index for index in stream if calls[index].name in known]
        self._calls = calls
        self._callees = listed.callees
        self._at = 0
        self._place = 0

    def matched(self, steps: Sequence[Step], later: Names = frozenset) -> Iterator[tuple[int, int, list[int]]]:
        """Each call's index, the number of its step, and the step; `later` gives what is called after the steps."""
        for position, step in enumerate(steps):
            self._place += 1

            def following(position: int = position) -> frozenset[str]:
                return later() | self._names(steps[position + 1 :])

            if isinstance(step[0], list):
                yield from self._matched_branch(step, following)
                continue
            if not self._is(step):
                self._skip_unknown(following() | {self._callees[step[0]]})
            if self._is(step):
                yield self._stream[self._at], self._place, step
                self._at += 1

    def _matched_branch(self, branches: list[list[Step]], later: Names) -> Iterator[tuple[int, int, list[int]]]:
        """The calls of the branch that more of the next calls are of; none where they are of neither."""
        start = self._place
        agreements = [self._agreement(branch) for branch in branches]
        if max(agreements):
            chosen = agreements.index(max(agreements))
            self._place += chosen * _count(branches[0])
            yield from self.matched(branches[chosen], later)
        self._place = start + sum(map(_count, branches))

    def _is(self, step: list[int], ahead: int = 0) -> bool:
        at = self._at + ahead
        return at < len(self._stream) and self._calls[self._stream[at]].name in (self._callees[step[0]], DYNAMIC_CALL)

    def _skip_unknown(self, known: frozenset[str]) -> None:
        """Skip calls that none of the remaining steps makes."""
        while self._at < len(self._stream) and self._calls[self._stream[self._at]].name not in {*known, DYNAMIC_CALL}:
            self._at += 1

    def _names(self, steps: Sequence[Step]) -> frozenset[str]:
        """Names that steps call, those of branches included."""
        found: set[str] = set()
        for step in steps:
            found |= (
                self._names(step[0]) | self._names(step[1]) if isinstance(step[0], list) else {self._callees[step[0]]}
            )
        return frozenset(found)

    def _agreement(self, steps: Sequence[Step]) -> int:
        """Number of the next calls that are those of a branch, one by one, up to a branch within it."""
        plain = itertools.takewhile(lambda step: not isinstance(step[0], list), steps)
        return sum(1 for _ in itertools.takewhile(lambda each: self._is(each[1], each[0]), enumerate(plain)))


def _count(steps: Sequence[Step]) -> int:
    """The number of steps, those of branches included."""
    return sum(1 + (_count(step[0]) + _count(step[1]) if isinstance(step[0], list) else 0) for step in steps)
