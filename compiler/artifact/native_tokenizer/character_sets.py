"""Character classes of regular expressions, as defined by the tokenizers library.

They are determined by calling the library, because its Unicode version may differ from Python's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np

from compiler.errors import OptionError
from compiler.support.optional import optional_module

Ranges = tuple[tuple[int, int], ...]  # first and last code points, ascending
LAST = 0x10FFFF
# The library takes quadratic time for long texts. The surrogates, which are not characters, form one chunk.
CHUNK = 0x800
_SURROGATES = 0xD800
# Planes without characters and for private use: all chunks in them behave like the first one.
_ALIKE = ((0x40000, 0xE0000), (0xE1000, 0xF0000), (0xF0000, 0xFF800), (0x100000, 0x10F800))
# The property White_Space, which has not changed since Unicode 6.3.
WHITE_SPACE: Ranges = (
    (9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip


def refused(what: str) -> OptionError:
    """The error for a tokenizer with a part that the C++ runtime does not support."""
    return OptionError(
        f"the tokenizer of the module has {what}, which static executables do not support",
        "write a plain runner, which takes tokens, with --no-text (text=None), or a bundle without --static",
    )


@cache
def characters_matching(pattern: str) -> Ranges:
    r"""The characters that a single-character pattern matches: r"\p{L}", "[^a-z]", "(?i:s)".

    Raises OptionError if the library does not support the pattern.
    """
    tokenizers = optional_module("tokenizers", "generate", "turns text into tokens")
    try:
        regex = tokenizers.Regex(f"(?:{pattern})+")
    except Exception as error:  # the package raises plain Exception
        raise refused(f"the regular expression {pattern!r}") from error
    remaining = np.ones(LAST + 1, bool)
    remove = tokenizers.normalizers.Replace(regex, "").normalize_str
    for first in chunks():
        left = remove("".join(map(chr, range(first, first + CHUNK))))
        remaining[first : first + CHUNK] = False
        remaining[np.frombuffer(left.encode("utf-32-le"), np.uint32)] = True
    for first, end in _ALIKE:
        remaining[first:end] = remaining[first]
    return _ranges(~remaining)


@cache
def punctuation() -> Ranges:
    """Characters that the pre-tokenizer Punctuation treats as punctuation."""
    tokenizers = optional_module("tokenizers", "generate", "turns text into tokens")
    return _cut_off(tokenizers.pre_tokenizers.Punctuation("isolated"), "PSC")


@cache
def digits() -> Ranges:
    """Characters that the pre-tokenizer Digits treats as digits."""
    tokenizers = optional_module("tokenizers", "generate", "turns text into tokens")
    return _cut_off(tokenizers.pre_tokenizers.Digits(individual_digits=True), "NC")


@cache
def word_characters() -> Ranges:
    """Characters that the pre-tokenizer Whitespace treats as parts of words."""
    tokenizers = optional_module("tokenizers", "generate", "turns text into tokens")
    cutter = tokenizers.pre_tokenizers.Whitespace()
    is_word = np.zeros(LAST + 1, bool)
    for first in chunks():
        text = " ".join(f"a{chr(code)}" for code in range(first, first + CHUNK))
        is_word[[first + begin // 3 for _, (begin, end) in cutter.pre_tokenize_str(text) if end - begin == 2]] = True
    return _ranges(is_word)


def made_of(normalize: Callable[[str], str], mark: str) -> dict[int, str]:
    """Replacements by code point of a normalizer that treats each character separately, for the characters that it
    changes. `mark`: a character that the normalizer keeps, and that it does not produce from any other character."""
    expansions: dict[int, str] = {}
    for first in chunks():
        codes = [code for code in range(first, first + CHUNK) if code != ord(mark)]
        texts = normalize(mark.join(map(chr, codes))).split(mark)
        changed = {code: text for code, text in zip(codes, texts, strict=True) if text != chr(code)}
        expansions |= changed
    for first, end in _ALIKE:
        if first in expansions:
            assert expansions[first] == ""
            expansions |= dict.fromkeys(range(first, end), "")
    return expansions


def ranges_of(codes: Collection[int]) -> Ranges:
    """Code points as ranges."""
    wanted = np.zeros(LAST + 1, bool)
    wanted[list(codes)] = True
    return _ranges(wanted)


def chunks() -> list[int]:
    """First code points of the chunks of CHUNK code points to examine; the others contain no characters or private
    ones."""
    alike = {first for begin, end in _ALIKE for first in range(begin + CHUNK, end, CHUNK)}
    return [first for first in range(0, LAST + 1, CHUNK) if first != _SURROGATES and first not in alike]


def _cut_off(cutter: Any, categories: str) -> Ranges:
    """The characters in some general categories that a pre-tokenizer separates from adjacent letters."""
    is_cut = np.zeros(LAST + 1, bool)
    for first in chunks():
        codes = [code for code in range(first, first + CHUNK) if unicodedata.category(chr(code))[0] in categories]
        places = [span for _, span in cutter.pre_tokenize_str("".join(f"a{chr(code)}" for code in codes) + "a")]
        # Separated characters are pieces at odd positions; other characters stay with the letters.
        is_cut[[codes[begin // 2] for begin, end in places if end - begin == 1 and begin % 2]] = True
    return _ranges(is_cut)


def _ranges(wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> Ranges:
    """Ranges of the code points for which `wanted` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return tuple((int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True))


@cache
def stripped_by_python() -> Ranges:
    """Characters that `str.strip`, which chat templates use, treats as white space."""
    return _ranges(np.array([chr(code).isspace() for code in range(LAST + 1)]))
