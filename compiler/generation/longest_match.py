"""Tokenizers that take the longest token at each place of a text (RWKV).

The tokenizers library has such a model, WordPiece, but it tries all ends of the text for each token: the time for a
text of some pages grows with the cube of its length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compiler.support.tokenizer_file import byte_level

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class LongestMatch:
    """Tokens of bytes, and those that texts are searched for first."""

    def __init__(self, tokens: Mapping[bytes, int], added: Mapping[bytes, int], unknown: int) -> None:
        self._tokens, self._added, self._unknown = tokens, added, unknown
        self._found = re.compile(b"(" + b"|".join(map(re.escape, sorted(added, key=len, reverse=True))) + b")")
        sizes: dict[int, set[int]] = {}
        for token in tokens:
            sizes.setdefault(token[0], set()).add(len(token))
        self._sizes = {first: sorted(each, reverse=True) for first, each in sizes.items()}

    @staticmethod
    def of(described: Mapping[str, Any]) -> LongestMatch | None:
        """The model of a file of the tokenizers library; None for another one, and for texts that are changed first."""
        model, before = described["model"], described.get("pre_tokenizer") or {}
        steps = described.get("normalizer") or described.get("post_processor")
        added = {each["content"].encode(): each["id"] for each in described["added_tokens"]}
        if (
            model["type"] != "WordPiece"
            or model["continuing_subword_prefix"]
            or steps
            or not added
            or any(each[flag] for each in described["added_tokens"] for flag in _FLAGS)
            or (before.get("type"), before.get("add_prefix_space"), before.get("use_regex"))
            != ("ByteLevel", False, False)
        ):
            return None
        table, vocabulary = byte_level(), model["vocab"]
        if not set("".join(vocabulary)) <= table.keys():
            return None
        tokens = {bytes(table[each] for each in text): number for text, number in vocabulary.items() if text}
        return LongestMatch(tokens, added, vocabulary[model["unk_token"]])

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; a byte that no token begins with is the unknown one."""
        found: list[int] = []
        for part in self._found.split(text.encode()):
            if part in self._added:
                found.append(self._added[part])
                continue
            at = 0
            while at < len(part):
                ends = (at + size for size in self._sizes.get(part[at], ()))
                end = next((end for end in ends if part[at:end] in self._tokens), at + 1)
                found.append(self._tokens.get(part[at:end], self._unknown))
                at = end
        return found
