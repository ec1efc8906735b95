"""Reads untrusted tokenizer.json files: some make the tokenizers library panic or abort the process."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ArtifactError, InputError, storage_errors
from compiler.support.optional import optional_module

_MAX_GROWTH = 1024  # maximum factor by which normalizers may lengthen a text
_HINT = "download the tokenizer again"
_VALUE = 1 << 31  # flag of a double-array trie's unit: it is a value, at the end of a key
_HAS_VALUE = 1 << 8


def read_tokenizer(content: bytes, origin: str = "the tokenizer of the module") -> Any:
    """A `tokenizers.Tokenizer`.

    Raises:
        ArtifactError: the file is damaged; names the invalid field if there is one.
        MissingDependencyError: the package tokenizers is not installed.
    """
    tokenizers = optional_module("tokenizers", "generate", "turns text into tokens")
    try:
        text = content.decode()
        check_tokenizer(json.loads(text), origin)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{origin} cannot be read: {error}", _HINT) from error
    with library_errors(ArtifactError, f"{origin} cannot be read"):
        return tokenizers.Tokenizer.from_str(text)


def read_tokenizer_file(path: str | os.PathLike[str]) -> Any:
    """The tokenizer in a file. Raises StorageError if the file cannot be read, and like `read_tokenizer`."""
    with storage_errors(path, what="the tokenizer "):
        content = Path(path).read_bytes()
    return read_tokenizer(content, f"the tokenizer {path}")


@cache
def byte_level() -> dict[str, int]:
    """Bytes by the characters that represent them in byte-level models."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


@contextmanager
def library_errors(kind: type[ArtifactError | InputError], what: str) -> Iterator[None]:
    """Translate exceptions of the tokenizers library: plain Exception, and panics, which are not derived from
    Exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise kind(f"{what}: {error}") from error
        raise


def expressions_of(described: object, path: str = "") -> list[str]:
    """The fields of a tokenizer that contain regular expressions."""
    if isinstance(described, list):
        return [each for index, item in enumerate(described) for each in expressions_of(item, f"{path}[{index}]")]
    if not isinstance(described, dict):
        return []
    found = [f"{path}.Regex"] if isinstance(described.get("Regex"), str) else []
    return found + [
        each
        for name, item in described.items()
        if name not in ("vocab", "merges", "added_tokens")
        for each in expressions_of(item, f"{path}.{name}" if path else name)
    ]


def check_tokenizer(described: object, origin: str) -> None:
    """Check what the library does not check before computing. Raises ArtifactError with the name of the field."""
    if not isinstance(described, dict):
        raise ArtifactError(f"{origin} is not a JSON object", _HINT)
    growth = 1
    for path, part in _parts(described.get("normalizer"), "normalizer", "normalizers"):
        kind = part.get("type")
        if kind == "Precompiled":
            _check_character_map(part.get("precompiled_charsmap"), f"{origin}: {path}.precompiled_charsmap")
        added = part.get("content") if kind == "Replace" else part.get("prepend") if kind == "Prepend" else ""
        growth *= max(1, len(added)) if isinstance(added, str) else 1
        if growth > _MAX_GROWTH:
            raise ArtifactError(f"{origin}: {path} lengthens texts more than {_MAX_GROWTH} times", _HINT)
    for path, part in _parts(described.get("post_processor"), "post_processor", "processors"):
        _check_template(part, f"{origin}: {path}")
    for path, part in _parts(described.get("decoder"), "decoder", "decoders"):
        for name in ("start", "stop"):
            if part.get("type") == "Strip" and _is_beyond(part.get(name)):
                raise ArtifactError(f"{origin}: {path}.{name} is not a number of characters: {part[name]}", _HINT)
    _check_model(described.get("model"), f"{origin}: model")


def _is_beyond(number: object) -> bool:
    return not isinstance(number, int) or not 0 <= number <= _MAX_GROWTH


def _parts(described: object, path: str, inner: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A part and, if it is a sequence, the parts in it, with their paths."""
    if not isinstance(described, dict):
        return
    yield path, described
    items = described.get(inner)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        yield from _parts(item, f"{path}.{inner}[{index}]", inner)


def _check_template(part: Mapping[str, Any], where: str) -> None:
    known = part.get("special_tokens")
    if part.get("type") != "TemplateProcessing" or not isinstance(known, dict):
        return
    for side in ("single", "pair"):
        items = part.get(side)
        for item in items if isinstance(items, list) else ():
            token = item.get("SpecialToken") if isinstance(item, dict) else None
            if isinstance(token, dict) and token.get("id") not in known:
                raise ArtifactError(f"{where}.{side}: special_tokens lacks {token.get('id')!r}", _HINT)


def _check_model(model: object, where: str) -> None:
    if not isinstance(model, dict):
        return
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    if model.get("type") in ("WordPiece", "WordLevel") and isinstance(vocabulary, dict) and unknown not in vocabulary:
        raise ArtifactError(f"{where}.unk_token: {unknown!r} is not in vocab", _HINT)


def _check_character_map(encoded: object, where: str) -> None:
    """Check a character map from SentencePiece: the bytes of a double-array trie, the trie, and the texts to which its
    values point, each terminated by a zero byte."""
    broken = ArtifactError(f"{where} is not a map of characters", _HINT)
    if not isinstance(encoded, str):
        raise broken
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise broken from error
    size = int.from_bytes(content[:4], "little")
    if len(content) < 8 or size % 4 or not 4 <= size <= len(content) - 4:
        raise broken
    units = np.frombuffer(content, "<u4", size // 4, 4).astype(np.int64)
    texts = content[4 + size :]
    if not _trie_is_sound(units, np.frombuffer(texts, np.uint8)):
        raise broken
    try:
        texts.decode()
    except UnicodeDecodeError as error:
        raise broken from error


def _trie_is_sound(units: np.ndarray[Any, np.dtype[np.int64]], texts: np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
    """True if no key, whatever its bytes, leads outside of a Darts-clone trie, and values are offsets at which
    characters start."""
    seen = np.zeros(len(units), bool)
    nodes = np.zeros(1, np.int64)
    while nodes.size:
        seen[nodes] = True
        reached = units[nodes]
        bases = nodes ^ ((reached >> 10) << ((reached & (1 << 9)) >> 6))
        if ((bases | 0xFF) >= len(units)).any():
            return False
        values = units[bases[(reached & _HAS_VALUE) != 0]] & (_VALUE - 1)
        if (values >= len(texts)).any() or ((texts[values] & 0xC0) == 0x80).any():
            return False
        children = (bases[:, None] ^ np.arange(1, 256)).ravel()
        labels = np.tile(np.arange(1, 256), len(bases))
        children = np.unique(children[(units[children] & (_VALUE | 0xFF)) == labels])
        nodes = children[~seen[children]]
    return True
