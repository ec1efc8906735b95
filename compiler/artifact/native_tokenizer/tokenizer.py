"""A tokenizer.json in the form that `text/tokenizer.cc` of the C++ runtime reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from compiler.artifact.native_tokenizer.character_sets import WHITE_SPACE, refused
from compiler.artifact.native_tokenizer.normalizers import write_normalizers
from compiler.artifact.native_tokenizer.parts import flattened, write_decoders, write_pre_tokenizers
from compiler.artifact.native_tokenizer.writer import Writer
from compiler.errors import MissingDependencyError, OptionError
from compiler.support.tokenizer_file import read_tokenizer

TOKENIZER_PROGRAM = "tokenizer.bin"
"""Asset of an embedding model for the C++ runtime."""


def native_tokenizer(content: bytes) -> bytes | None:
    """A tokenizer for the C++ runtime; None if it has a part that the runtime does not support, or if the package
    tokenizers is not installed. Raises ArtifactError."""
    writer = Writer()
    try:
        write_tokenizer(content, writer)
    except (OptionError, MissingDependencyError):
        return None
    return writer.content()


def write_tokenizer(content: bytes, writer: Writer) -> None:
    """Append a tokenizer, given as a file of the tokenizers library.

    Raises:
        OptionError: it has a part that the C++ runtime does not support; the message names it.
        ArtifactError: it is damaged.
        MissingDependencyError: the package tokenizers is not installed.
    """
    tokenizer = read_tokenizer(content)
    described: dict[str, Any] = json.loads(tokenizer.to_str())  # includes all defaults
    writer.numbers([edge for pair in WHITE_SPACE for edge in pair])
    write_normalizers(flattened(described["normalizer"], "normalizers"), writer)
    write_pre_tokenizers(flattened(described["pre_tokenizer"], "pretokenizers"), writer)
    write_model(described["model"], writer)
    _write_added(described["added_tokens"], tokenizer, writer)
    before, after = _around(flattened(described["post_processor"], "processors"))
    writer.numbers(before)
    writer.numbers(after)
    decoder = described["decoder"]
    writer.number(int(decoder is None))  # tokens are then joined with spaces
    write_decoders(flattened(decoder, "decoders"), writer)


def _write_added(added: Sequence[Mapping[str, Any]], tokenizer: Any, writer: Writer) -> None:
    """Append the tokens that are matched before texts are split."""
    tokens = [token for token in added if token["content"]]
    writer.number(len(tokens))
    for token in tokens:
        if token["single_word"]:
            raise refused(f"the token {token['content']!r} that must be a single word")
        matched = token["content"]
        if token["normalized"] and tokenizer.normalizer is not None:
            matched = tokenizer.normalizer.normalize_str(matched)
        writer.number(token["id"])
        writer.text(tokenizer.id_to_token(token["id"]))
        writer.text(matched)
        for option in ("special", "normalized", "lstrip", "rstrip"):
            writer.number(int(token[option]))


def _around(processors: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Tokens before and after the tokens of a text."""
    prefix: list[int] = []
    suffix: list[int] = []
    for part in processors:
        kind = part["type"]
        if kind in ("BertProcessing", "RobertaProcessing"):
            prefix, suffix = [part["cls"][1], *prefix], [*suffix, part["sep"][1]]
        elif kind == "TemplateProcessing":
            first, last = _template(part)
            prefix, suffix = [*first, *prefix], [*suffix, *last]
        elif kind != "ByteLevel":  # which changes only offsets
            raise refused(f"the post-processor {kind}")
    return prefix, suffix


def _template(part: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    sides: tuple[list[int], list[int]] = [], []
    side = 0
    for item in part["single"]:
        if "Sequence" in item:
            side += 1
            continue
        sides[min(side, 1)].extend(part["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    if side != 1:
        raise refused(f"a template that holds the text {side} times")
    return sides


_NONE = 0xFFFFFFFF
_MAX_TOKENS = 1 << 24
_MAX_CHARACTERS = 1 << 30


class Model(IntEnum):
    """Kinds of models; the same numbers are in `text/model.cc`."""

    PAIR_ENCODING = 1
    UNIGRAM = 2
    WORD_PIECE = 3
    WORD_LEVEL = 4


def write_model(model: Mapping[str, Any], writer: Writer) -> None:
    """Append a model. Raises OptionError for a kind or an option that is not supported."""
    write = _WRITERS.get(model["type"])
    if write is None:
        raise refused(f"a model of the kind {model['type']}")
    write(model, writer)


def _write_pair_encoding(model: Mapping[str, Any], writer: Writer) -> None:
    if model.get("dropout"):
        raise refused("the option dropout of BPE")
    vocabulary: dict[str, int] = model["vocab"]
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in vocabulary:
        raise refused(f"the unknown token {unknown!r}, which is not in its vocabulary")
    continuing = model.get("continuing_subword_prefix") or ""
    writer.number(Model.PAIR_ENCODING)
    _write_vocabulary(_texts(vocabulary), vocabulary, writer)
    merges = {}  # the last of equal ones wins, as in the library
    for rank, (left, right) in enumerate(model["merges"]):
        merged = left + right.encode()[len(continuing.encode()) :].decode()
        merges[vocabulary[left], vocabulary[right]] = rank, vocabulary[merged]
    writer.numbers([value for pair, found in sorted(merges.items()) for value in (*pair, *found)])
    writer.number(_NONE if unknown is None else vocabulary[unknown])
    for option in ("fuse_unk", "ignore_merges"):
        writer.number(int(bool(model.get(option))))
    writer.text(continuing)
    writer.text(model.get("end_of_word_suffix") or "")
    _write_fallback(model, vocabulary, writer)


def _write_unigram(model: Mapping[str, Any], writer: Writer) -> None:
    texts = [text for text, _ in model["vocab"]]
    vocabulary = {text: number for number, text in enumerate(texts)}  # the last one wins, as in the library
    unknown = model.get("unk_id")
    writer.number(Model.UNIGRAM)
    _write_vocabulary(texts, vocabulary, writer)
    writer.numbers(np.array([score for _, score in model["vocab"]], "<f8").view("<u4"))
    writer.number(_NONE if unknown is None else unknown)
    _write_fallback(model, vocabulary, writer)


def _write_word_piece(model: Mapping[str, Any], writer: Writer) -> None:
    writer.number(Model.WORD_PIECE)
    _write_words(model, writer)
    writer.text(model["continuing_subword_prefix"])
    writer.number(min(model["max_input_chars_per_word"], _MAX_CHARACTERS))


def _write_word_level(model: Mapping[str, Any], writer: Writer) -> None:
    writer.number(Model.WORD_LEVEL)
    _write_words(model, writer)


def _write_words(model: Mapping[str, Any], writer: Writer) -> None:
    vocabulary: dict[str, int] = model["vocab"]
    _write_vocabulary(_texts(vocabulary), vocabulary, writer)
    writer.number(vocabulary.get(model["unk_token"], _NONE))


def _texts(vocabulary: Mapping[str, int]) -> list[str]:
    """Texts by number; "" for unused numbers."""
    size = max(vocabulary.values(), default=-1) + 1
    if size > _MAX_TOKENS:
        raise refused(f"{size} tokens")
    texts = [""] * size
    for text, number in vocabulary.items():
        texts[number] = text
    return texts


def _write_vocabulary(texts: Sequence[str], vocabulary: Mapping[str, int], writer: Writer) -> None:
    writer.texts(texts)
    writer.numbers([vocabulary[text] for text in sorted(vocabulary, key=str.encode)])


def _write_fallback(model: Mapping[str, Any], vocabulary: Mapping[str, int], writer: Writer) -> None:
    """The tokens for single bytes; empty if the model has no byte fallback."""
    fallback = [vocabulary.get(f"<0x{byte:02X}>", _NONE) for byte in range(256)]
    writer.numbers(fallback if model.get("byte_fallback") else [])


_WRITERS: dict[str, Callable[[Mapping[str, Any], Writer], None]] = {
    "BPE": _write_pair_encoding,
    "Unigram": _write_unigram,
    "WordPiece": _write_word_piece,
    "WordLevel": _write_word_level,
}
