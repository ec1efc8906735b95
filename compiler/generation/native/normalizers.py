"""Normalizers of a tokenizer.json: what is done to a text before it is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from compiler.generation.native.character_sets import Ranges, made_of, ranges_of, refused
from compiler.generation.native.charsmap import charsmap_rules, cluster_characters
from compiler.generation.native.normalization import FORMS, write_normalization
from compiler.generation.native.parts import Part, Step, pattern_source
from compiler.generation.native.patterns import Pattern
from compiler.generation.native.writer import Writer
from compiler.support.optional import optional_module


def write_normalizers(parts: Sequence[Part], writer: Writer) -> None:
    """Append what is done to the whole text. Raises OptionError for a part that is not supported."""
    steps = _Steps()
    for part in parts:
        steps.add(part)
    writer.number(steps.count)
    writer.append(steps.written)


class _Steps:
    """Steps, and how many there are."""

    def __init__(self) -> None:
        self.written, self.count = Writer(), 0

    def add(self, part: Part) -> None:
        """The steps of one normalizer."""
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
        """Control characters go, and white space becomes spaces."""
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
