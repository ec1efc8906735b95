"""Speculative decoding: draft tokens are proposed, and verified together in one run.

Each token is chosen from the model's own logits as it would be without draft tokens, which only reduce the number of
runs. So the result is the same token by token, for greedy decoding and for sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from compiler.generation.steps import Chunk, Steps

_LONGEST, _SHORTEST = 4, 2  # tokens of a run that is looked for


class Drafter(Protocol):
    """Guesses the tokens of one sequence."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Draft tokens that may follow these, up to a limit; the tokens of the previous call are a prefix of these."""


class PromptLookup:
    """Guesses from what followed when the last tokens came before: for texts that repeat themselves or the prompt."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # of runs of tokens: where the last one ends
        self._indexed = 0

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Drafter.draft`."""
        if most < 1:
            return []
        self._index(tokens, len(tokens) - 1)
        sizes = range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1)
        ends = (self._ends.get(tuple(tokens[-size:])) for size in sizes)
        start = next((each for each in ends if each is not None), None)
        self._index(tokens, len(tokens))
        if start is None:
            return []
        # What follows may reach into the guess itself: a text that repeats goes on so.
        period = len(tokens) - start
        return [tokens[start + i % period] for i in range(most)]

    def _index(self, tokens: Sequence[int], end: int) -> None:
        """Note the runs that end before position `end`."""
        for each in range(self._indexed + 1, end + 1):
            for size in range(_SHORTEST, min(_LONGEST, each) + 1):
                self._ends[tuple(tokens[each - size : each])] = each
        self._indexed = max(self._indexed, end)


class DraftModel:
    """The most likely tokens of a smaller model with the same tokens."""

    def __init__(self, steps: Steps, slot: int, room: int) -> None:
        """`slot`: of the sequence; `room`: the most tokens that the smaller model can read."""
        self._steps, self._slot, self._room = steps, slot, room
        self._read: list[int] = []

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Drafter.draft`."""
        most = min(most, self._room - len(tokens) + 1)
        if most < 1:
            return []
        common = next((i for i, pair in enumerate(zip(self._read, tokens, strict=False)) if pair[0] != pair[1]), None)
        common = min(len(self._read), len(tokens) - 1) if common is None else min(common, len(tokens) - 1)
        length = self._steps.back_to(self._slot, common)
        if length < common:
            self._steps.mark(self._slot, common)
        common = length
        del self._read[common:]
        unread, guessed = list(tokens[common:]), list[int]()
        while len(guessed) < most:
            position = len(self._read)
            chunk = Chunk(self._slot, unread, position, position + len(unread), is_prompt=len(unread) > 1, logits=1)
            guessed.append(int(self._steps.run([chunk])[0][0].argmax()))
            self._read += unread
            unread = guessed[-1:]
        return guessed


class Speculation:
    """Number of tokens to guess for a sequence: more while guesses are right."""

    def __init__(self, drafter: Drafter, most: int) -> None:
        """`most`: tokens that are guessed at once."""
        self._drafter, self._max_tokens = drafter, most
        self._width = min(most, 4)

    def draft(self, tokens: Sequence[int], room: int) -> list[int]:
        """Guesses of the next tokens, at most `room`."""
        return self._drafter.draft(tokens, min(self._width, room))

    def checked(self, guessed: int, right: int) -> None:
        """Record the number of guesses and of right ones."""
        if not guessed:
            return
        self._width = min(self._max_tokens, 2 * self._width) if right == guessed else max(1, right, self._width // 2)
