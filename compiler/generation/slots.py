"""Assignment of sequences to slots, and the part of a prompt that a slot holds already."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from compiler.generation.steps import Steps

_LEAST_COPIED = 16  # tokens: fewer are computed as fast as they are copied


class Slots:
    """The slots of some steps, with the tokens that each has read. Slots that are free keep theirs for prompts that
    begin alike, until they are needed: the one that was used least recently goes first."""

    def __init__(self, steps: Steps, stable: int | None = None) -> None:
        """`stable`: the length beyond which sequences share nothing, as what they hold depends on their length."""
        self._steps, self._stable = steps, stable
        self._held: list[list[int]] = [[] for _ in range(steps.slots)]
        self._shares = [True] * steps.slots
        self._free = set(range(steps.slots))
        self._clock = count(1)
        self._used = [0] * steps.slots

    def common(self, prompt: Sequence[int]) -> int:
        """Number of tokens of a prompt that need not be computed."""
        return self._best(prompt)[1]

    def take(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A slot for a prompt, and how many of its tokens that holds. There has to be a free one."""
        source, rows = self._best(prompt)
        if source in self._free and rows == len(self._held[source]):
            target = source  # nothing is lost
        else:
            target = min(self._free, key=lambda slot: (slot == source and rows > 0, self._used[slot]))
            if target != source and rows < _LEAST_COPIED:
                rows = 0
            elif target != source:
                self._steps.copy(source, target, rows)
        self._free.remove(target)
        self._held[target] = list(prompt[:rows])
        self._shares[target] = self.may_share(prompt)
        return target, rows

    def read(self, slot: int, tokens: Sequence[int]) -> None:
        """A slot has read tokens."""
        self._held[slot].extend(tokens)

    def forget(self, slot: int, count: int) -> None:
        """Rewind a slot by a number of tokens."""
        held = self._held[slot]
        del held[len(held) - count :]

    def release(self, slot: int) -> None:
        """A sequence has ended: its slot is free."""
        self._free.add(slot)
        self._used[slot] = next(self._clock)

    def drop(self, slot: int) -> None:
        """A sequence has failed: what its slot holds is not known."""
        self._held[slot] = []
        self.release(slot)

    def may_share(self, prompt: Sequence[int]) -> bool:
        """True if other sequences can begin with what a slot holds of a prompt."""
        return self._stable is None or len(prompt) <= self._stable

    def _best(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The slot that holds the longest beginning of a prompt, and its length."""
        best, most = min(self._free), 0
        if not self.may_share(prompt):
            return best, most
        for slot, held in enumerate(self._held):
            if not self._shares[slot]:
                continue
            rows = common_length(held if self._stable is None else held[: self._stable], prompt)
            if not self._steps.rewinds and rows < len(held):
                continue
            if rows > most or (rows == most and rows and slot in self._free):
                best, most = slot, rows
        return best, most


def common_length(held: Sequence[int], tokens: Sequence[int]) -> int:
    """Length of the prefix that a prompt shares with the held tokens, at most all but its last, whose logits are
    needed."""
    low, high = 0, min(len(held), len(tokens) - 1)
    if held[:high] == tokens[:high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        low, high = (middle, high) if held[low:middle] == tokens[low:middle] else (low, middle)
    return low
