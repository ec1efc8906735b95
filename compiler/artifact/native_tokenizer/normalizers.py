"""Normalizers of a tokenizer.json, applied to a text before it is split."""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from compiler.artifact.native_tokenizer.character_sets import CHUNK, LAST, Ranges, chunks, made_of, ranges_of, refused
from compiler.artifact.native_tokenizer.parts import Part, Step, pattern_source
from compiler.artifact.native_tokenizer.patterns import Pattern
from compiler.artifact.native_tokenizer.writer import Writer
from compiler.errors import ArtifactError
from compiler.support.optional import optional_module


def write_normalizers(parts: Sequence[Part], writer: Writer) -> None:
    """Append the normalization steps for the whole text. Raises OptionError for a part that is not supported."""
    steps = _Steps()
    for part in parts:
        steps.add(part)
    writer.number(steps.count)
    writer.append(steps.written)


class _Steps:
    """Steps and their number."""

    def __init__(self) -> None:
        self.written, self.count = Writer(), 0

    def add(self, part: Part) -> None:
        """Append the steps of one normalizer."""
        kind = part["type"]
        if kind in FORMS:
            write_normalization(kind, self._step(Step.NORMALIZE))
        elif kind == "Prepend":
            self._step(Step.PREPEND).text(part["prepend"])
        elif kind == "Replace":
            self._replace(pattern_source(part["pattern"]), part["content"])
        elif kind == "Strip":
            writer = self._step(Step.STRIP)
            writer.number(int(part["strip_left"]))
            writer.number(int(part["strip_right"]))
        elif kind == "ByteLevel":
            writer = self._step(Step.BYTE_LEVEL)
            writer.number(0)  # no space before
            writer.number(0)  # no words
        elif kind == "Precompiled":
            rules = charsmap_rules(part["precompiled_charsmap"])
            writer = self._step(Step.CHARSMAP)
            for ranges in cluster_characters():
                writer.numbers([edge for pair in ranges for edge in pair])
            writer.texts(rules)
            writer.texts(rules.values())
        elif kind == "Lowercase":
            self._lowercase()
        elif kind == "StripAccents":
            self._remove(_emptied("StripAccents", "\n"))
        elif kind == "Nmt":
            self._clean("Nmt", {})
        elif kind == "BertNormalizer":
            self._bert(part)
        else:
            raise refused(f"the normalizer {kind}")

    def _step(self, kind: Step) -> Writer:
        self.count += 1
        self.written.number(kind)
        return self.written

    def _replace(self, pattern: str | Ranges, content: str) -> None:
        writer = self._step(Step.REPLACE)
        Pattern(pattern).write(writer)
        writer.text(content)

    def _remove(self, characters: Ranges) -> None:
        self._replace(characters, "")

    def _clean(self, name: str, options: Mapping[str, bool]) -> None:
        """Remove control characters and replace white space with spaces."""
        made = _made(name, "a", **options)
        self._remove(_emptied(name, "a", **options))
        self._replace(ranges_of([code for code, text in made.items() if text == " "]), " ")

    def _bert(self, part: Part) -> None:
        off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
        strips = part["lowercase"] if part["strip_accents"] is None else part["strip_accents"]
        if part["clean_text"]:
            self._clean("BertNormalizer", {**off, "clean_text": True})
        if part["handle_chinese_chars"]:
            spaced = _made("BertNormalizer", "\n", **{**off, "handle_chinese_chars": True})
            self._step(Step.SPACED).numbers([edge for pair in ranges_of(spaced) for edge in pair])
        if strips:
            write_normalization("NFD", self._step(Step.NORMALIZE))
            self._remove(_emptied("BertNormalizer", "\n", **{**off, "strip_accents": True}))
        if part["lowercase"]:
            self._lowercase()

    def _lowercase(self) -> None:
        lower = _made("Lowercase", "\n")
        writer = self._step(Step.MAPPED)
        writer.numbers(list(lower))
        writer.texts(lower.values())


@cache
def _made(name: str, mark: str, **options: bool) -> dict[int, str]:
    """Replacements of single characters by a normalizer of the tokenizers library: `made_of`."""
    normalizers: Any = optional_module("tokenizers", "generate", "turns text into tokens").normalizers
    return made_of(getattr(normalizers, name)(**options).normalize_str, mark)


def _emptied(name: str, mark: str, **options: bool) -> Ranges:
    """The characters that a normalizer removes."""
    return ranges_of([code for code, text in _made(name, mark, **options).items() if not text])


_LARGE_CLUSTER = 6  # bytes: clusters of this size or larger are replaced character by character
_MAX_BYTES = 64  # maximum size of a replaced text; it limits the traversal of a damaged trie
_MAX_RULES = 1 << 20


def charsmap_rules(encoded: str) -> dict[str, str]:
    """The replacements that the tokenizers library applies: texts of less than six bytes of which no other one is a
    prefix.

    Args:
        encoded: base64 of: bytes of the trie (uint32), the trie (uint32 each), and texts, each followed by a zero byte.

    Raises ArtifactError if it is damaged.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
        size = int.from_bytes(content[:4], "little")
        trie, texts = np.frombuffer(content[4 : 4 + size], "<u4").tolist(), content[4 + size :]
        rules = {}
        for key, offset in _entries(trie):
            rules[key.decode()] = texts[offset : texts.index(b"\0", offset)].decode()
            if len(rules) > _MAX_RULES:
                raise ValueError("it has too many rules")
    except (ValueError, IndexError, binascii.Error) as error:
        raise ArtifactError(f"the tokenizer's precompiled_charsmap is damaged: {error}") from error
    return {key: text for key, text in rules.items() if _is_used(key, rules)}


def _is_used(key: str, rules: Mapping[str, str]) -> bool:
    return len(key.encode()) < _LARGE_CLUSTER and not any(key[:size] in rules for size in range(1, len(key)))


@cache
def cluster_characters() -> tuple[Ranges, Ranges, Ranges]:
    """Characters that form a cluster with the preceding one, characters that form one with the following one, and
    characters that stand alone, in the Unicode version of the tokenizers library."""
    extends = _clustered("A{}", joined=True)
    prepends = _clustered("{}A", joined=True)
    controls = _clustered("{}\u0301", joined=False) - extends
    return ranges_of(extends), ranges_of(prepends), ranges_of(controls)


def _clustered(form: str, *, joined: bool) -> set[int]:
    """The characters with which a text is one cluster or several: each cluster of less than six bytes becomes "B"."""
    bytes_but_newline = [byte for byte in range(1, 256) if byte != ord("\n")]
    trie = [256 << 10, *[0] * 767]
    for byte in bytes_but_newline:
        index = 256 ^ byte
        trie[index] = (index ^ 512) << 10 | 1 << 8 | byte
    trie[512] = 1 << 31
    content = b"".join(unit.to_bytes(4, "little") for unit in [4 * len(trie), *trie]) + b"B\0"
    normalizers: Any = optional_module("tokenizers", "generate", "turns text into tokens").normalizers
    normalize = normalizers.Precompiled(content).normalize_str
    found = set()
    for first in chunks():
        codes = [code for code in range(first, first + CHUNK) if chr(code) not in "\r\n"]
        texts = normalize("\n".join(form.format(chr(code)) for code in codes)).split("\n")
        # Texts longer than five bytes give no information.
        small = [len(form.format(chr(code)).encode()) < _LARGE_CLUSTER for code in codes]
        found |= {
            code
            for code, text, is_small in zip(codes, texts, small, strict=True)
            if is_small and (len(text) == 1) == joined
        }
    return found if joined else found | {ord("\r"), ord("\n")}


def _entries(trie: list[int]) -> Iterator[tuple[bytes, int]]:
    """Texts in the trie, and the offset of each one's replacement."""
    waiting = [(b"", _offset(trie[0]))]
    while waiting:
        prefix, node = waiting.pop()
        for byte in range(1, 256):
            index = node ^ byte
            if index >= len(trie) or trie[index] & 0x800000FF != byte:
                continue
            child = index ^ _offset(trie[index])
            key = prefix + bytes([byte])
            if trie[index] >> 8 & 1:
                yield key, trie[child] & 0x7FFFFFFF
            if len(key) < _MAX_BYTES:
                waiting.append((key, child))


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


FORMS = {
    "NFC": (False, True),
    "NFD": (False, False),
    "NFKC": (True, True),
    "NFKD": (True, False),
}  # compatible, composed
_HANGUL = range(0xAC00, 0xD7A4)  # decomposed by arithmetic
_LIGHTEST = "\u0334"  # a mark of combining class 1, which is sorted before marks of higher classes


def write_normalization(form: str, writer: Writer) -> None:
    """Append the tables of a normalization form: composition flag, decompositions, combining classes, compositions."""
    compatible, composed = FORMS[form]
    decompositions = _decompositions(compatible)
    writer.number(int(composed))
    writer.numbers([ord(each) for each in decompositions])
    writer.texts(decompositions.values())
    classes = _combining_classes()
    writer.numbers([number for pair in classes.items() for number in pair])
    writer.numbers([code for triple in _compositions() for code in triple] if composed else [])


@cache
def _decompositions(compatible: bool) -> dict[str, str]:
    """Characters with their full decompositions."""
    normalizer = _normalizers().NFKD() if compatible else _normalizers().NFD()
    candidates = (chr(code) for code in range(LAST + 1) if code not in _HANGUL and not 0xD800 <= code < 0xE000)
    found = {each: normalizer.normalize_str(each) for each in candidates if unicodedata.decomposition(each)}
    return {each: text for each, text in found.items() if text != each}


@cache
def _combining_classes() -> dict[int, int]:
    """Combining classes other than 0, by code point."""
    normalizer = _normalizers().NFD()
    classes = {}
    for code in range(LAST + 1):
        mark = chr(code)
        number = unicodedata.combining(mark)
        # Characters unknown to the library keep their position there.
        if number == 1 or (number > 1 and normalizer.normalize_str(f"a{mark}{_LIGHTEST}")[1] == _LIGHTEST):
            classes[code] = number
    return classes


@cache
def _compositions() -> list[tuple[int, int, int]]:
    """Pairs of characters and their composition."""
    normalizer = _normalizers().NFC()
    triples = []
    for code in range(LAST + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) != 2 or parts[0].startswith("<"):
            continue
        first, second = (int(part, 16) for part in parts)
        if normalizer.normalize_str(chr(first) + chr(second)) == chr(code):
            triples.append((first, second, code))
    return triples


def _normalizers() -> Any:
    return optional_module("tokenizers", "generate", "turns text into tokens").normalizers
