"""Incremental detokenization, and detection of stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens, that one character can take


class TextStream:
    """Detokenizes tokens that arrive one by one; a character is emitted once all of its bytes are known."""

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        """`context`: tokens before, which some tokenizers need to know whether a space is due."""
        self._decode = decode
        self._tokens = list(context)[-_LONGEST_CHARACTER:]
        self._begin, self._given = 0, len(self._tokens)

    def add(self, token: int) -> str:
        """The text that this token completes; "" where it ends within a character."""
        self._tokens.append(token)
        return self._next(final=False)

    def end(self) -> str:
        """Text of the rest: bytes that do not form a character become replacement characters."""
        return self._next(final=True)

    def _next(self, *, final: bool) -> str:
        before = self._decode(self._tokens[self._begin : self._given])
        now = self._decode(self._tokens[self._begin :])
        waiting = len(self._tokens) - self._given
        incomplete = now.endswith(_BROKEN) and waiting < _LONGEST_CHARACTER
        if not waiting or (incomplete and not final):
            return ""
        text = now[len(before) :]
        if (
            text
        ):  # behind special tokens alone, a decoder takes what follows for the beginning, which may lose its space
            self._begin = self._given
        self._given = len(self._tokens)
        return text


class StopTexts:
    """Holds back what may be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""
        self.found = False

    def add(self, piece: str) -> str:
        """Text that can be given out now; sets `found` where a stop text is complete."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """Text that was held back and did not become a stop text."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of `text` that begin `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
