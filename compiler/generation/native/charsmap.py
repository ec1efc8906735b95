"""The rules of SentencePiece's normalizer (`precompiled_charsmap`): a double-array trie of UTF-8, and what each text of
it becomes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from compiler.errors import ArtifactError
from compiler.generation.native.character_sets import CHUNK, Ranges, chunks, ranges_of
from compiler.support.optional import optional_module

_LARGE_CLUSTER = 6  # bytes: larger ones are replaced character by character
_MOST_BYTES = 64  # of a text that is replaced: ends the walk over a damaged trie
_MOST_RULES = 1 << 20


def charsmap_rules(encoded: str) -> dict[str, str]:
    """Replacements as far as the tokenizers library makes them: texts of less than six bytes, none of which another one
    begins with.

    Args:
        encoded: base64 of: bytes of the trie (uint32), the trie (uint32 each), texts that end in a zero byte.

    Raises ArtifactError where it is damaged.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
        size = int.from_bytes(content[:4], "little")
        trie, texts = np.frombuffer(content[4 : 4 + size], "<u4").tolist(), content[4 + size :]
        rules = {}
        for key, place in _entries(trie):
            rules[key.decode()] = texts[place : texts.index(b"\0", place)].decode()
            if len(rules) > _MOST_RULES:
                raise ValueError("it has too many rules")
    except (ValueError, IndexError, binascii.Error) as error:
        raise ArtifactError(f"the tokenizer's precompiled_charsmap is damaged: {error}") from error
    return {key: text for key, text in rules.items() if _is_used(key, rules)}


def _is_used(key: str, rules: Mapping[str, str]) -> bool:
    return len(key.encode()) < _LARGE_CLUSTER and not any(key[:size] in rules for size in range(1, len(key)))


@cache
def cluster_characters() -> tuple[Ranges, Ranges, Ranges]:
    """Characters that stand in one cluster with the one before, those that do with the one behind, and those that stand
    alone, in the version of Unicode of the tokenizers library."""
    extends = _clustered("A{}", joined=True)
    prepends = _clustered("{}A", joined=True)
    controls = _clustered("{}\u0301", joined=False) - extends
    return ranges_of(extends), ranges_of(prepends), ranges_of(controls)


def _clustered(form: str, *, joined: bool) -> set[int]:
    """The characters with which a text is one cluster, or several: each of less than six bytes becomes "B"."""
    bytes_but_newline = [byte for byte in range(1, 256) if byte != ord("\n")]
    trie = [256 << 10, *[0] * 767]
    for byte in bytes_but_newline:
        place = 256 ^ byte
        trie[place] = (place ^ 512) << 10 | 1 << 8 | byte
    trie[512] = 1 << 31
    content = b"".join(unit.to_bytes(4, "little") for unit in [4 * len(trie), *trie]) + b"B\0"
    normalizers: Any = optional_module("tokenizers", "generate", "turns text into tokens").normalizers
    normalize = normalizers.Precompiled(content).normalize_str
    found = set()
    for first in chunks():
        codes = [code for code in range(first, first + CHUNK) if chr(code) not in "\r\n"]
        texts = normalize("\n".join(form.format(chr(code)) for code in codes)).split("\n")
        # Longer texts than five bytes tell nothing.
        small = [len(form.format(chr(code)).encode()) < _LARGE_CLUSTER for code in codes]
        found |= {
            code
            for code, text, is_small in zip(codes, texts, small, strict=True)
            if is_small and (len(text) == 1) == joined
        }
    return found if joined else found | {ord("\r"), ord("\n")}


def _entries(trie: list[int]) -> Iterator[tuple[bytes, int]]:
    """Texts of the trie, and where what they become begins."""
    waiting = [(b"", _offset(trie[0]))]
    while waiting:
        prefix, node = waiting.pop()
        for byte in range(1, 256):
            place = node ^ byte
            if place >= len(trie) or trie[place] & 0x800000FF != byte:
                continue
            child = place ^ _offset(trie[place])
            key = prefix + bytes([byte])
            if trie[place] >> 8 & 1:
                yield key, trie[child] & 0x7FFFFFFF
            if len(key) < _MOST_BYTES:
                waiting.append((key, child))


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)
