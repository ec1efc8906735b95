"""Pre-tokenizers and decoders of a tokenizer.json, one part at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from compiler.artifact.native_tokenizer.character_sets import (
    WHITE_SPACE,
    characters_matching,
    digits,
    punctuation,
    refused,
    word_characters,
)
from compiler.artifact.native_tokenizer.patterns import Pattern
from compiler.artifact.native_tokenizer.writer import Writer

Part = Mapping[str, Any]
_BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~")


class Step(IntEnum):
    """Steps applied to texts; the same numbers are in `text/steps.h`."""

    PREPEND = 1
    REPLACE = 2
    NORMALIZE = 3
    STRIP = 4
    SPLIT = 5
    BYTE_LEVEL = 6
    METASPACE = 7
    MAPPED = 8
    SPACED = 9
    CHARSMAP = 10


class Undo(IntEnum):
    """Steps that convert tokens to text; the same numbers are in `text/decoder.h`."""

    BYTE_LEVEL = 1
    REPLACE = 2
    BYTE_FALLBACK = 3
    FUSE = 4
    STRIP = 5
    METASPACE = 6
    WORD_PIECE = 7
    WORD_ENDS = 8


class Behavior(IntEnum):
    """Treatment of the matches of a split; the same numbers are in `text/steps.h`."""

    REMOVED = 0
    ISOLATED = 1
    MERGED_WITH_PREVIOUS = 2
    MERGED_WITH_NEXT = 3
    CONTIGUOUS = 4


_BEHAVIORS = {
    "Removed": Behavior.REMOVED,
    "Isolated": Behavior.ISOLATED,
    "MergedWithPrevious": Behavior.MERGED_WITH_PREVIOUS,
    "MergedWithNext": Behavior.MERGED_WITH_NEXT,
    "Contiguous": Behavior.CONTIGUOUS,
}
_PREPENDED = {"never": 0, "first": 1, "always": 2}


def flattened(part: Part | None, inner: str) -> list[Part]:
    """The list of parts for an optional part or a sequence of parts; `inner` names the list in a sequence."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [each for one in part[inner] for each in flattened(one, inner)]
    return [part]


def write_pre_tokenizers(parts: Sequence[Part], writer: Writer) -> None:
    """Append how texts are split. Raises OptionError for a part that is not supported."""
    steps = Writer()
    count = 0
    for part in parts:
        count += _write_pre_tokenizer(part, steps)
    writer.number(count)
    writer.append(steps)


def _write_pre_tokenizer(part: Part, writer: Writer) -> int:
    """Append the steps of one part and return their number."""
    kind = part["type"]
    if kind == "Split":
        return _write_split(
            writer, Pattern(pattern_source(part["pattern"])), _BEHAVIORS[part["behavior"]], part["invert"]
        )
    if kind == "ByteLevel":
        writer.number(Step.BYTE_LEVEL)
        writer.number(int(part.get("add_prefix_space", True)))
        writer.number(int(part.get("use_regex", True)))
        if part.get("use_regex", True):
            Pattern(_BYTE_LEVEL_PATTERN).write(writer)
        return 1
    if kind == "Metaspace":
        writer.number(Step.METASPACE)
        writer.text(part["replacement"])
        writer.number(_prepended(part))
        writer.number(int(part.get("split", True)))
        return 1
    if kind == "Digits":
        behavior = Behavior.ISOLATED if part["individual_digits"] else Behavior.CONTIGUOUS
        return _write_split(writer, Pattern(digits()), behavior)
    if kind == "Punctuation":
        return _write_split(writer, Pattern(punctuation()), _BEHAVIORS[part.get("behavior", "Isolated")])
    if kind == "WhitespaceSplit":
        return _write_split(writer, Pattern(characters_matching(r"\s")), Behavior.REMOVED)
    if kind == "Whitespace":
        spaces = _write_split(writer, Pattern(WHITE_SPACE), Behavior.REMOVED)
        return spaces + _write_split(writer, Pattern(word_characters()), Behavior.CONTIGUOUS)
    if kind == "BertPreTokenizer":
        spaces = _write_split(writer, Pattern(WHITE_SPACE), Behavior.REMOVED)
        return spaces + _write_split(writer, Pattern(punctuation()), Behavior.ISOLATED)
    if kind == "CharDelimiterSplit":
        delimiter = ord(part["delimiter"])
        return _write_split(writer, Pattern(((delimiter, delimiter),)), Behavior.REMOVED)
    raise refused(f"the pre-tokenizer {kind}")


def _write_split(writer: Writer, pattern: Pattern, behavior: Behavior, invert: bool = False) -> int:
    writer.number(Step.SPLIT)
    pattern.write(writer)
    writer.number(behavior)
    writer.number(int(invert))
    return 1


def write_decoders(parts: Sequence[Part], writer: Writer) -> None:
    """Append how tokens are joined to a text. Raises OptionError for a part that is not supported."""
    writer.number(len(parts))
    for part in parts:
        kind = part["type"]
        if kind == "Replace":
            writer.number(Undo.REPLACE)
            Pattern(pattern_source(part["pattern"])).write(writer)
            writer.text(part["content"])
        elif kind == "Metaspace":
            writer.number(Undo.METASPACE)
            writer.text(part["replacement"])
            writer.number(_prepended(part))
        elif kind in _DECODERS:
            step, fields = _DECODERS[kind]
            writer.number(step)
            for value in (part[field] for field in fields):
                writer.text(value) if isinstance(value, str) else writer.number(int(value))
        else:
            raise refused(f"the decoder {kind}")


# The step for each kind of decoder, and the fields that are written after it.
_DECODERS: dict[str, tuple[Undo, tuple[str, ...]]] = {
    "ByteLevel": (Undo.BYTE_LEVEL, ()),
    "ByteFallback": (Undo.BYTE_FALLBACK, ()),
    "Fuse": (Undo.FUSE, ()),
    "Strip": (Undo.STRIP, ("content", "start", "stop")),
    "WordPiece": (Undo.WORD_PIECE, ("prefix", "cleanup")),
    "BPEDecoder": (Undo.WORD_ENDS, ("suffix",)),
}


def _prepended(part: Part) -> int:
    scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
    return _PREPENDED[scheme]


def pattern_source(pattern: Mapping[str, str]) -> str:
    """The regular expression of a pattern, which may be plain text."""
    if "Regex" in pattern:
        return pattern["Regex"]
    return "".join(f"\\{each}" if each in _SPECIAL else each for each in pattern["String"])
