"""Programs that match regular expressions, for the matcher in `text/pattern.cc` of the C++ runtime."""

from __future__ import annotations

from enum import IntEnum

from compiler.generation.native.character_sets import Ranges, refused
from compiler.generation.native.pattern_parser import (
    Atomic,
    Characters,
    Choice,
    Edge,
    Look,
    Node,
    Repeat,
    Sequence,
    matches_empty,
    parse,
)
from compiler.generation.native.writer import Writer

_NO_LIMIT = 0xFFFFFFFF
_MOST_INSTRUCTIONS = 100_000


class Operation(IntEnum):
    """Instructions of three operands; the same in `text/pattern.h`."""

    MATCH = 0
    CHARACTER = 1  # of set a
    FORK = 2  # go on at a, and if that fails at b
    JUMP = 3  # to a
    GREEDY = 4  # characters of set a, b to c of them, as many as possible first
    POSSESSIVE = 5  # the same without trying fewer
    AHEAD = 6  # the program behind, which ends in MATCH, matches here; go on at a
    NOT_AHEAD = 7
    ATOMIC = 8  # the same, and takes what it matches
    BEHIND = 9  # the character before is of set a
    NOT_BEHIND = 10
    BEGIN = 11  # of the text
    END = 12


class Pattern:
    """A regular expression as instructions and character sets."""

    def __init__(self, source: str | Ranges) -> None:
        """Compile a regular expression, or a set of characters.

        Raises OptionError where it has a part that is not supported, or matches an empty text.
        """
        self._code: list[tuple[int, int, int, int]] = []
        self._sets: dict[Ranges, int] = {}
        node = parse(source) if isinstance(source, str) else Characters(source)
        if matches_empty(node):
            raise refused(f"the regular expression {source!r}, which matches an empty text")
        self._compile(node)
        self._add(Operation.MATCH)

    def write(self, writer: Writer) -> None:
        """Append it to a file."""
        writer.number(len(self._sets))
        for ranges in self._sets:
            writer.numbers([edge for pair in ranges for edge in pair])
        writer.numbers([value for instruction in self._code for value in instruction])

    def _add(self, operation: Operation, *operands: int) -> int:
        if len(self._code) >= _MOST_INSTRUCTIONS:
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
        """A program within the program."""
        place = self._add(operation)
        self._compile(body)
        self._add(Operation.MATCH)
        self._code[place] = (operation, len(self._code), 0, 0)

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
            raise refused("a regular expression that repeats what matches an empty text")
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
