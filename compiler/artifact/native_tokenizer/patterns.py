"""Programs that match regular expressions, for the matcher in `text/pattern.cc` of the C++ runtime.

Also parses the regular expressions of tokenizers (the part of Oniguruma's syntax that tokenizers use).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Literal

from compiler.artifact.native_tokenizer.character_sets import LAST, Ranges, characters_matching, refused
from compiler.artifact.native_tokenizer.writer import Writer

Greed = Literal["greedy", "lazy", "possessive"]


@dataclass(frozen=True)
class Characters:
    """One character from a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    """Patterns in sequence."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """The first of several patterns with which the rest matches."""

    ways: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """A pattern repeated `least` to `most` times; None for no maximum."""

    body: Node
    least: int
    most: int | None
    greed: Greed


@dataclass(frozen=True)
class Look:
    """Zero-width assertion: lookahead for a pattern, or lookbehind for one character from a set."""

    body: Node
    behind: bool
    negative: bool


@dataclass(frozen=True)
class Atomic:
    """A pattern of which only the first match is tried."""

    body: Node


@dataclass(frozen=True)
class Edge:
    """The beginning or the end of the text."""

    end: bool


Node = Characters | Sequence | Choice | Repeat | Look | Atomic | Edge
_ESCAPED = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
_CLASSES = "sSdDwWhH"
_MAX_COPIES = 1000


def parse(pattern: str) -> Node:
    """The syntax tree of a regular expression.

    Raises OptionError if it contains a part that is not supported.
    """
    parser = _Parser(pattern)
    node = parser.choice(ignoring_case=False)
    if parser.left:
        raise parser.refused("an unmatched )")
    return node


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    @property
    def left(self) -> str:
        return self._pattern[self._at :]

    def refused(self, what: str) -> Exception:
        return refused(f"the regular expression {self._pattern!r} with {what}")

    def choice(self, ignoring_case: bool) -> Node:
        ways = [self._sequence(ignoring_case)]
        while self._take("|"):
            ways.append(self._sequence(ignoring_case))
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def _sequence(self, ignoring_case: bool) -> Node:
        parts: list[Node] = []
        letters = ""  # consecutive literal characters
        while self.left and self.left[0] not in "|)":
            at = self._at
            part = self._repeated(self._atom(ignoring_case))
            taken = self._pattern[at : self._at]
            letters = letters + taken if len(taken) == 1 else ""
            if ignoring_case and any(each in letters.casefold() for each in _folded_from_one()):
                raise self.refused(f"{letters!r} in (?i:...), which a single character may equal")
            parts.append(part)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _take(self, text: str) -> bool:
        found = self.left.startswith(text)
        self._at += len(text) if found else 0
        return found

    def _atom(self, ignoring_case: bool) -> Node:
        if self._take("("):
            return self._group(ignoring_case)
        if self._take("^") or self._take("$") or self._take("\\b") or self._take("\\B"):
            raise self.refused("an anchor")
        if self._take("\\A"):
            return Edge(end=False)
        if self._take("\\z"):
            return Edge(end=True)
        begin = self._at
        character = self._pattern[begin]
        if character == "[":
            if ignoring_case:
                raise self.refused("a class in (?i:...)")
            self._skip_class()
        elif character == "\\":
            self._skip_escape()
        elif character in "*+?{":
            raise self.refused(f"a {character} that repeats nothing")
        else:
            self._at += 1
        text = self._pattern[begin : self._at]
        if len(text) == 1 and text != "." and not ignoring_case:
            return Characters(((ord(text), ord(text)),))
        return Characters(characters_matching(f"(?i:{text})" if ignoring_case else text))

    def _group(self, ignoring_case: bool) -> Node:
        forms = {"?:": None, "?i:": None, "?-i:": None, "?>": None, "?=": None, "?!": None, "?<=": None, "?<!": None}
        form = next((each for each in forms if self._take(each)), "")
        if not form and self.left.startswith("?"):
            raise self.refused(f"a group ({self.left[:3]}")
        body = self.choice(form == "?i:" or (ignoring_case and form != "?-i:"))
        if not self._take(")"):
            raise self.refused("an unmatched (")
        if form == "?>":
            return Atomic(body)
        if form in ("?=", "?!"):
            return Look(body, behind=False, negative=form == "?!")
        if form in ("?<=", "?<!"):
            if not isinstance(body, Characters):
                raise self.refused("a look-behind of more than one character")
            return Look(body, behind=True, negative=form == "?<!")
        return body

    def _skip_class(self) -> None:
        """Skip a character class: it ends at a ], except the first character and the ] of a nested class."""
        self._at += 1
        self._take("^")
        first = True
        while self.left and (first or self.left[0] != "]"):
            first = False
            if self.left.startswith("[:"):
                self._at = self._pattern.index(":]", self._at) + 2
            elif self.left[0] == "[":
                self._skip_class()
            elif self.left[0] == "\\":
                self._skip_escape()
            else:
                self._at += 1
        if not self._take("]"):
            raise self.refused("an unmatched [")

    def _skip_escape(self) -> None:
        kind = self._pattern[self._at + 1 : self._at + 2]
        if kind in ("p", "P", "x") and self._pattern[self._at + 2 : self._at + 3] == "{":
            self._at = self._pattern.find("}", self._at) + 1
            if self._at == 0:
                raise self.refused(f"an unfinished \\{kind}")
        elif kind == "x":
            self._at += 4
        elif kind == "u":
            self._at += 6
        elif kind and (kind in _CLASSES or kind in _ESCAPED or not kind.isalnum()):
            self._at += 2
        else:
            raise self.refused(f"the escape \\{kind}")

    def _repeated(self, body: Node) -> Node:
        while self.left and self.left[0] in "*+?{":
            bounds = self._bounds()
            if bounds is None:
                raise self.refused("a { that is not a repetition")
            least, most, counted = bounds
            greed: Greed = "greedy"
            if self._take("?"):
                if counted and least == most:
                    raise self.refused("{n}?")
                greed = "lazy"
            elif not counted and self._take("+"):
                greed = "possessive"
            if (most or least) > _MAX_COPIES:
                raise self.refused(f"a repetition of more than {_MAX_COPIES} times")
            if isinstance(body, Look | Edge):
                raise self.refused("a repetition of a pattern that matches no character")
            body = Repeat(body, least, most, greed)
        return body

    def _bounds(self) -> tuple[int, int | None, bool] | None:
        """Bounds of a repetition, and True if they are in braces."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return *bounds, False
        inner, found, _ = self.left[1:].partition("}")
        least, comma, most = inner.partition(",")
        if not found or not (least + most).isascii() or not (least + most).isdigit() or not least:
            return None
        self._at += len(inner) + 2
        return int(least), (int(most) if most else None) if comma else int(least), True


@cache
def _folded_from_one() -> frozenset[str]:
    """Texts of several characters that equal a single character when case is ignored, for example "ss" for the sharp
    s."""
    found = {chr(code).casefold() for code in range(LAST + 1) if not 0xD800 <= code < 0xE000}
    return frozenset(text for text in found if len(text) > 1)


def matches_empty(node: Node) -> bool:
    """True if a pattern can match the empty text."""
    match node:
        case Characters():
            return False
        case Sequence(parts):
            return all(matches_empty(part) for part in parts)
        case Choice(ways):
            return any(matches_empty(way) for way in ways)
        case Repeat(body, least):
            return least == 0 or matches_empty(body)
        case Atomic(body):
            return matches_empty(body)
    return True


_NO_LIMIT = 0xFFFFFFFF
_MAX_INSTRUCTIONS = 100_000


class Operation(IntEnum):
    """Instructions with three operands; the same numbers are in `text/pattern.h`."""

    MATCH = 0
    CHARACTER = 1  # from set a
    FORK = 2  # continue at a, and if that fails at b
    JUMP = 3  # to a
    GREEDY = 4  # b to c characters from set a, as many as possible first
    POSSESSIVE = 5  # the same without trying fewer
    AHEAD = 6  # the following program, which ends in MATCH, matches here; continue at a
    NOT_AHEAD = 7
    ATOMIC = 8  # the same, and consumes the match
    BEHIND = 9  # the previous character is from set a
    NOT_BEHIND = 10
    BEGIN = 11  # of the text
    END = 12


class Pattern:
    """A regular expression as instructions and character sets."""

    def __init__(self, source: str | Ranges) -> None:
        """Compile a regular expression, or a set of characters.

        Raises OptionError if it contains a part that is not supported, or matches an empty text.
        """
        self._code: list[tuple[int, int, int, int]] = []
        self._sets: dict[Ranges, int] = {}
        node = parse(source) if isinstance(source, str) else Characters(source)
        if matches_empty(node):
            raise refused(f"the regular expression {source!r}, which matches an empty text")
        self._compile(node)
        self._add(Operation.MATCH)

    def write(self, writer: Writer) -> None:
        """Append the program to a file."""
        writer.number(len(self._sets))
        for ranges in self._sets:
            writer.numbers([edge for pair in ranges for edge in pair])
        writer.numbers([value for instruction in self._code for value in instruction])

    def _add(self, operation: Operation, *operands: int) -> int:
        if len(self._code) >= _MAX_INSTRUCTIONS:
            raise refused("a regular expression that is too large")
        self._code.append((operation, *operands, *[0] * (3 - len(operands))))  # type: ignore[arg-type]
        return len(self._code) - 1

    def _set(self, ranges: Ranges) -> int:
        return self._sets.setdefault(ranges, len(self._sets))

    def _compile(self, node: Node) -> None:
        match node:
            case Characters(ranges):
                self._add(Operation.CHARACTER, self._set(ranges))
            case Sequence(parts):
                for part in parts:
                    self._compile(part)
            case Choice(ways):
                self._choose(ways)
            case Repeat():
                self._repeat(node)
            case Look(body, behind, negative):
                self._look(body, behind, negative)
            case Atomic(body):
                self._inner(Operation.ATOMIC, body)
            case Edge(end):
                self._add(Operation.END if end else Operation.BEGIN)

    def _choose(self, ways: tuple[Node, ...]) -> None:
        ends = []
        for way in ways[:-1]:
            fork = self._add(Operation.FORK)
            self._compile(way)
            ends.append(self._add(Operation.JUMP))
            self._code[fork] = (Operation.FORK, fork + 1, len(self._code), 0)
        self._compile(ways[-1])
        for end in ends:
            self._code[end] = (Operation.JUMP, len(self._code), 0, 0)

    def _look(self, body: Node, behind: bool, negative: bool) -> None:
        if not behind:
            self._inner(Operation.NOT_AHEAD if negative else Operation.AHEAD, body)
            return
        assert isinstance(body, Characters)
        self._add(Operation.NOT_BEHIND if negative else Operation.BEHIND, self._set(body.ranges))

    def _inner(self, operation: Operation, body: Node) -> None:
        """Add a nested program."""
        index = self._add(operation)
        self._compile(body)
        self._add(Operation.MATCH)
        self._code[index] = (operation, len(self._code), 0, 0)

    def _repeat(self, node: Repeat) -> None:
        if isinstance(node.body, Characters) and node.greed != "lazy":
            operation = Operation.GREEDY if node.greed == "greedy" else Operation.POSSESSIVE
            most = _NO_LIMIT if node.most is None else node.most
            self._add(operation, self._set(node.body.ranges), node.least, most)
        elif node.greed == "possessive":
            self._inner(Operation.ATOMIC, Repeat(node.body, node.least, node.most, "greedy"))
        else:
            self._repeat_copies(node)

    def _repeat_copies(self, node: Repeat) -> None:
        if matches_empty(node.body):
            raise refused("a regular expression that repeats a pattern matching the empty text")
        for _ in range(node.least):
            self._compile(node.body)
        forks = []
        if node.most is None:
            forks.append(self._add(Operation.FORK))
            self._compile(node.body)
            self._add(Operation.JUMP, forks[0])
        for _ in range((node.most or node.least) - node.least):
            forks.append(self._add(Operation.FORK))
            self._compile(node.body)
        for fork in forks:
            ways = (fork + 1, len(self._code))
            first, second = ways if node.greed == "greedy" else ways[::-1]
            self._code[fork] = (Operation.FORK, first, second, 0)
