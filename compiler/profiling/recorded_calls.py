"""Nodes of the model that the calls of a run compute, by the list of calls in the manifest.

Calls of one kernel are told apart by their order: those of each function of the module follow its list.

Dataflow of a recorded run: what each call reads of earlier calls, and the bytes of tensors that are alive meanwhile.

Kernels write their last arguments. A tensor is its address from one write there to the next: addresses of memory that
tensors share by the plan are told apart by time, and views and tensors written in place are those that they are over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
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


ALIGNMENT = 64
"""Bytes that tensors in memory are rounded up to, as in the memory plan of the manifest."""
IN_PLACE = "_in_place"
"""The end of the names of kernels that update their last argument, which they read too (`kernels_in_place.py`)."""


@dataclass(frozen=True)
class Dataflow:
    """Dataflow between the calls of a run.

    Attributes:
        reads: for each call, the earlier calls whose results it reads, without duplicates, in order.
        live: of each call, the bytes of tensors that are written before it ends and read in it or later, results of the
            run included; parameters, inputs, and memory inside of kernels are not.
    """

    reads: tuple[tuple[int, ...], ...]
    live: tuple[int, ...]


@dataclass
class _Tensor:
    writer: int
    end: int  # the last call that it is alive in
    nbytes: int


def dataflow(calls: Sequence[Call], outputs: Sequence[int]) -> Dataflow:
    """Find what flows between calls.

    Args:
        outputs: how many of its tensors, the last ones, each call writes; 0 for calls of the runtime.
    """
    current: dict[int, _Tensor] = {}  # by address
    every: list[_Tensor] = []
    reads: list[tuple[int, ...]] = []
    for index, (call, count) in enumerate(zip(calls, outputs, strict=True)):
        tensors = [each for each in call.arguments.values() if each.nbytes]
        first = max(0, len(tensors) - count)
        read = tensors if call.name.endswith(IN_PLACE) else tensors[:first]
        found = [current[each.address] for each in read if each.address in current]
        for tensor in found:
            tensor.end = index
        reads.append(tuple(sorted({tensor.writer for tensor in found})) if count else ())
        for argument in tensors[first:]:
            replaced = current.get(argument.address)
            if replaced is not None and replaced.end == index:
                replaced.end -= 1  # in place: it is the new tensor from here on
            current[argument.address] = _Tensor(index, index, -(-argument.nbytes // ALIGNMENT) * ALIGNMENT)
            every.append(current[argument.address])
    changes = [0] * (len(calls) + 1)
    for tensor in every:
        changes[tensor.writer] += tensor.nbytes
        changes[tensor.end + 1] -= tensor.nbytes
    return Dataflow(tuple(reads), tuple(accumulate(changes[:-1])))
