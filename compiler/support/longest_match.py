"""Greedy tokenizer: the longest token at each position of a text (RWKV).

WordPiece of the tokenizers library gives the same tokens, but tries every end of the text for each of them: its time is
cubic in the length of a text without spaces, and RWKV's tokens contain spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from compiler.support.tokenizer_file import byte_level

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class LongestMatch:
    """Tokens as bytes, and added tokens, which are found first."""

    def __init__(self, tokens: Mapping[bytes, int], added: Mapping[bytes, int], unknown: int) -> None:
        self._tokens, self._added, self._unknown = tokens, added, unknown
        self._found = re.compile(b"(" + b"|".join(map(re.escape, sorted(added, key=len, reverse=True))) + b")")
        sizes: dict[bytes, set[int]] = {}
        for token in tokens:
            sizes.setdefault(token[:2], set()).add(len(token))
        self._sizes = {first: sorted(each, reverse=True) for first, each in sizes.items()}

    @staticmethod
    def of(tokenizer: Any) -> LongestMatch | None:
        """Convert a `tokenizers.Tokenizer`; None unless it is only byte-level WordPiece without a prefix."""
        if type(tokenizer.model).__name__ != "WordPiece":  # checked first: writing a large vocabulary takes 0.1 s
            return None
        described: dict[str, Any] = json.loads(tokenizer.to_str())
        model, splitter, added = described["model"], described["pre_tokenizer"] or {}, described["added_tokens"]
        if model["continuing_subword_prefix"] or not added:
            return None
        splits = splitter.get("type") != "ByteLevel" or splitter["add_prefix_space"] or splitter["use_regex"]
        if splits or described["normalizer"] or described["post_processor"]:
            return None
        table, vocabulary = byte_level(), model["vocab"]
        if any(each[flag] for each in added for flag in _FLAGS) or not set("".join(vocabulary)) <= table.keys():
            return None
        tokens = {bytes(table[each] for each in text): number for text, number in vocabulary.items() if text}
        special = {each["content"].encode(): each["id"] for each in added}
        return LongestMatch(tokens, special, vocabulary[model["unk_token"]])

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; a byte that starts no token is unknown."""
        ids: list[int] = []
        for part in self._found.split(text.encode()):
            if part in self._added:
                ids.append(self._added[part])
                continue
            at = 0
            while at < len(part):
                ends = (at + size for size in self._sizes.get(part[at : at + 2], ()))
                end = next((end for end in ends if part[at:end] in self._tokens), at + 1)
                ids.append(self._tokens.get(part[at:end], self._unknown))
                at = end
        return ids
