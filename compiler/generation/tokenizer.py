"""Tokenization, detokenization, and chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import ArtifactError, InputError
from compiler.generation.chat_templates import ChatTemplate, Messages
from compiler.support.longest_match import LongestMatch
from compiler.support.tokenizer_file import byte_level, expressions_of, library_errors, read_tokenizer

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """The tokenizer of a module."""

    def __init__(self, content: bytes, description: LanguageModelDescription) -> None:
        """Read a file of the tokenizers library. Raises ArtifactError if it is damaged, and MissingDependencyError if
        the package tokenizers is not installed."""
        self._tokenizer = read_tokenizer(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._longest_match = LongestMatch.of(self._tokenizer)
        self._description = description
        self._templates: dict[str, ChatTemplate] = {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text; `special` puts those before it that the model expects.

        Raises InputError where the text is not valid Unicode, or the tokenizer fails on it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error}", "decode it as UTF-8 first") from error
        if self._longest_match is not None:
            return self._longest_match.encode(text)
        return tokens_of(self._tokenizer, text, special=special)

    def longest_token(self) -> int:
        """Bytes of text that one token stands for at most, as the vocabulary writes it."""
        return max(len(text.encode()) for text in self._tokenizer.get_vocab())

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of tokens; special ones are left out."""
        with library_errors(ArtifactError, "the decoder of the module's tokenizer fails"):
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def token_bytes(self, count: int) -> list[bytes]:
        """The bytes of the first `count` tokens; b"" for special ones, and for those that there are none of.

        A token that holds a part of a character has some of its bytes.
        """
        described = json.loads(self._tokenizer.to_str())
        form = json.dumps(described.get("decoder") or {})
        to_bytes = (
            _from_byte_level if '"ByteLevel"' in form else _from_fallback if '"ByteFallback"' in form else _from_text
        )
        table = [b""] * count
        for token, number in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if number < count:
                table[number] = to_bytes(token)
        for number, added in self._tokenizer.get_added_tokens_decoder().items():
            if number < count:
                table[number] = b"" if added.special else added.content.encode()
        return table

    def token(self, text: str) -> int | None:
        """The token of a text; None where it is none."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def special_tokens(self) -> dict[str, int]:
        """Added tokens that are special, by their texts."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {each.content: number for number, each in added if each.special}

    def chat(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None, **names: object) -> str:
        """Messages ({"role": ..., "content": ...}) as the prompt of the assistant's next one; as `ChatTemplate.render`.

        Raises InputError where the module has no chat template, or it refuses the messages.
        """
        source = self._description.chat_template
        if tools is not None:
            source = self._description.tool_template or source
        if source is None:
            raise InputError("the model has no chat template", "give the prompt as a text")
        return self._template(source).render(messages, tools, **names)

    def _template(self, source: str) -> ChatTemplate:
        if source not in self._templates:
            special = {"bos_token": self._description.begin, "eos_token": self._description.end}
            self._templates[source] = ChatTemplate(source, special)
        return self._templates[source]


def tokens_of(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Tokens of a text, by a tokenizer of the package. Raises InputError where it fails on the text."""
    try:
        with library_errors(InputError, "the tokenizer cannot read the text"):
            tokens: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    except InputError as error:
        fields = ", ".join(expressions_of(json.loads(tokenizer.to_str()))[:8])
        error.hint = f"the tokenizer's regular expressions are in {fields}" if fields else None
        raise
    return tokens


def _from_byte_level(token: str) -> bytes:
    table = byte_level()
    return bytes(table[each] for each in token) if all(each in table for each in token) else token.encode()


def _from_fallback(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else _from_text(token)


def _from_text(token: str) -> bytes:
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
