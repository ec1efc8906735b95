"""Tables of Unicode normalization (NFC, NFD, NFKC, NFKD), as the tokenizers library has them."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

from compiler.generation.native.character_sets import LAST
from compiler.generation.native.writer import Writer
from compiler.support.optional import optional_module

FORMS = {
    "NFC": (False, True),
    "NFD": (False, False),
    "NFKC": (True, True),
    "NFKD": (True, False),
}  # compatible, composed
_HANGUL = range(0xAC00, 0xD7A4)  # decomposed by arithmetic
_LIGHTEST = "\u0334"  # a mark of combining class 1, which goes before those of higher classes


def write_normalization(form: str, writer: Writer) -> None:
    """Append the tables of a form: whether it composes, decompositions, combining classes, and compositions."""
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
    """Characters with their whole decompositions."""
    normalizer = _normalizers().NFKD() if compatible else _normalizers().NFD()
    candidates = (chr(code) for code in range(LAST + 1) if code not in _HANGUL and not 0xD800 <= code < 0xE000)
    found = {each: normalizer.normalize_str(each) for each in candidates if unicodedata.decomposition(each)}
    return {each: text for each, text in found.items() if text != each}


@cache
def _combining_classes() -> dict[int, int]:
    """Combining classes other than 0, by code point."""
    normalizer = _normalizers().NFD()
    found = {}
    for code in range(LAST + 1):
        mark = chr(code)
        number = unicodedata.combining(mark)
        # Characters that the library does not know keep their place there.
        if number == 1 or (number > 1 and normalizer.normalize_str(f"a{mark}{_LIGHTEST}")[1] == _LIGHTEST):
            found[code] = number
    return found


@cache
def _compositions() -> list[tuple[int, int, int]]:
    """Pairs of characters and the one that they are composed to."""
    normalizer = _normalizers().NFC()
    found = []
    for code in range(LAST + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) != 2 or parts[0].startswith("<"):
            continue
        first, second = (int(part, 16) for part in parts)
        if normalizer.normalize_str(chr(first) + chr(second)) == chr(code):
            found.append((first, second, code))
    return found


def _normalizers() -> Any:
    return optional_module("tokenizers", "generate", "turns text into tokens").normalizers
