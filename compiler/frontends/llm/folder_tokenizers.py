"""Older tokenizer files in folders: tokens added outside tokenizer.json, SentencePiece, GPT-2."""

from __future__ import annotations

import ast
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.safetensors_folder import read_bytes, read_json
from compiler.frontends.llm.tokenizer_models import (
    CONTROL,
    GPT2,
    NORMAL,
    QWEN2,
    UNKNOWN,
    USER,
    added_token,
    byte_level,
    check_pieces,
    longest_match,
    pieces,
    scored_merges,
    tokenizer_content,
    unigram,
    with_rules,
)

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of SentencePiece's ModelProto
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _FALLBACK, _BEGIN = 3, 35, 41  # of the trainer
_CHARACTERS, _PREFIX, _COLLAPSES, _ESCAPES = 2, 3, 4, 5  # of the normalizer
_UNIGRAM, _MERGED = 1, 2  # model types
_RWKV = "rwkv_vocab_v20230424.txt"
_SPLITS = {"GPT2Tokenizer": GPT2, "CodeGenTokenizer": GPT2, "Qwen2Tokenizer": QWEN2}


def read_folder_tokenizer(folder: Path, settings: Mapping[str, Any]) -> bytes | None:
    """Read the tokenizer of a folder, with its settings in tokenizer_config.json, as a tokenizers file; None if
    the folder has no tokenizer of a known kind. Raises InvalidModelError if a file is damaged, and StorageError if a
    file cannot be read."""
    path = folder / "tokenizer.json"
    if path.exists():
        return _with_added(read_bytes(path), _listed(folder, settings))
    if (folder / "tokenizer.model").exists():
        content = _sentence_piece(folder / "tokenizer.model", settings)
    elif (folder / _RWKV).exists():
        content = _longest_match(folder / _RWKV, _listed(folder, settings))
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        content = _vocabulary_and_merges(folder, settings)
    else:
        return None
    return None if content is None else _with_added(json.dumps(content).encode(), _listed(folder, settings))


def _listed(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return tokens added outside tokenizer.json, in numeric order."""
    path = folder / "added_tokens.json"
    older = read_json(path) if path.exists() else {}
    tokens = {number: added_token(number, text, special=False) for text, number in older.items()}
    table = settings.get("added_tokens_decoder")
    for number, entry in (table if isinstance(table, dict) else {}).items():
        if not isinstance(entry, dict) or not str(number).isdecimal() or not isinstance(entry.get("content"), str):
            raise InvalidModelError(f"{folder}: the added token {str(number)[:80]!r} is {str(entry)[:80]!r}")
        token = added_token(int(number), entry["content"], special=False)
        tokens[int(number)] = token | {flag: bool(entry.get(flag)) for flag in _FLAGS}
    if not all(isinstance(number, int) and number >= 0 for number in tokens):
        raise InvalidModelError(f"{path} contains tokens without numbers")
    return [tokens[number] for number in sorted(tokens)]


def _with_added(content: bytes, listed: list[dict[str, Any]]) -> bytes:
    """Add missing tokens to the file; a damaged file is returned unchanged, to be rejected by its reader."""
    if not listed:
        return content
    try:
        parsed = json.loads(content)
        present = parsed.get("added_tokens") or []
        known = {each["id"] for each in present}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return content
    missing = [each for each in listed if each["id"] not in known]
    if not missing:
        return content
    return json.dumps({**parsed, "added_tokens": [*present, *missing]}, ensure_ascii=False).encode()


@dataclass
class _SentencePiece:
    """The parts of a SentencePiece file that are read."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    model_type: int = 1
    begin: int = 1
    prefix: bool = True
    collapses: bool = True
    escapes: bool = True
    byte_fallback: bool = False
    characters: bytes = b""


def _sentence_piece(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return pieces merged by score (Llama, Mistral, Gemma), or Unigram; None for other types."""
    try:
        model = _parsed(read_bytes(path))
    except (ValueError, IndexError, struct.error) as error:
        raise InvalidModelError(f"{path} is not a SentencePiece file, or is damaged: {error}") from error
    if model.model_type not in (_UNIGRAM, _MERGED) or not model.escapes:
        return None
    prefix = model.prefix if settings.get("add_prefix_space") is None else settings["add_prefix_space"] is True
    parts = (_unigram if model.model_type == _UNIGRAM else _merged)(model, path, prefix)
    special = [
        added_token(index, model.tokens[index], special=kind != USER)
        for index, kind in enumerate(model.kinds)
        if kind in (CONTROL, USER, UNKNOWN)
    ]
    begins = settings.get("add_bos_token") is not False and 0 <= model.begin < len(model.tokens)
    begin = (model.tokens[model.begin], model.begin) if begins else None
    return tokenizer_content(with_rules(parts, model.characters, collapses=model.collapses), special, begin)


def _merged(model: _SentencePiece, path: Path, prefix: bool) -> dict[str, Any]:
    check_pieces(model.tokens, str(path))
    unknown = next((text for text, kind in zip(model.tokens, model.kinds, strict=True) if kind == UNKNOWN), "")
    vocabulary = {text: index for index, text in enumerate(model.tokens)}
    merges = scored_merges(model.tokens, model.scores, model.kinds)
    return pieces(vocabulary, merges, prefix=prefix, unknown=unknown)


def _unigram(model: _SentencePiece, path: Path, prefix: bool) -> dict[str, Any]:
    if UNKNOWN not in model.kinds:
        raise InvalidModelError(f"{path} has no token for unknown characters")
    return unigram(
        list(zip(model.tokens, model.scores, strict=True)),
        model.kinds.index(UNKNOWN),
        prefix=prefix,
        byte_fallback=model.byte_fallback,
    )


def _parsed(data: bytes) -> _SentencePiece:
    model = _SentencePiece([], [], [])
    for field, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if field == _PIECES:
            piece = dict(_fields(value))
            score = piece.get(_SCORE, b"\0" * 4)
            model.tokens.append(_bytes(piece.get(_TEXT, b"")).decode())
            model.scores.append(struct.unpack("<f", _bytes(score))[0])
            model.kinds.append(_number(piece.get(_KIND, NORMAL)))
        elif field == _TRAINER:
            trainer = dict(_fields(value))
            model.model_type = _number(trainer.get(_MODEL_TYPE, 1))
            model.begin = _number(trainer.get(_BEGIN, 1))
            model.byte_fallback = bool(_number(trainer.get(_FALLBACK, 0)))
        elif field == _NORMALIZER:
            normalizer = dict(_fields(value))
            model.prefix = bool(_number(normalizer.get(_PREFIX, 1)))
            model.collapses = bool(_number(normalizer.get(_COLLAPSES, 1)))
            model.escapes = bool(_number(normalizer.get(_ESCAPES, 1)))
            model.characters = _bytes(normalizer.get(_CHARACTERS, b""))
    return model


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield numbers and values of a protobuf message's fields; floats as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of the unknown kind {kind}")
        size, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > len(data):
            raise ValueError("a field ends after the end of the file")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value - (1 << 64) if value >> 63 else value, at
    raise ValueError("a number is too long")


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field holds no number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field holds a number")
    return value


def _longest_match(path: Path, listed: list[dict[str, Any]]) -> dict[str, Any] | None:
    """RWKV's vocabulary: lines with a token's id, Python literal and length. Token 0, which it lacks, ends texts."""
    tokens: dict[bytes, int] = {}
    try:
        for line in read_bytes(path).decode().strip("\n").split("\n"):
            number, _, rest = line.partition(" ")
            literal, _, size = rest.rpartition(" ")
            token = ast.literal_eval(literal)
            token = token.encode() if isinstance(token, str) else bytes(token)
            if len(token) != int(size):
                raise ValueError(f"{literal} does not have {size} bytes")
            tokens[token] = int(number)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InvalidModelError(f"{path} is damaged: {error}", "download the tokenizer again") from error
    end: str = next((each["content"] for each in listed if each["id"] == 0), "<s>")
    parts = longest_match({end.encode(): 0, **tokens}, end.encode())
    return None if parts is None else tokenizer_content(parts, [added_token(0, end, special=True)], None)


def _vocabulary_and_merges(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return byte-level pairs (GPT-2, OPT, Qwen 2) from two files; None for other tokenizer classes."""
    kind = str(settings.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if kind not in _SPLITS:
        return None
    vocabulary = read_json(folder / "vocab.json")
    try:
        lines = read_bytes(folder / "merges.txt").decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidModelError(f"{folder / 'merges.txt'} is not valid UTF-8: {error}") from error
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line.split(" ") for line in lines if line]
    if any(len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys() for pair in merges):
        raise InvalidModelError(f"{folder / 'merges.txt'} merges tokens that vocab.json does not contain")
    parts = byte_level(vocabulary, merges, (_SPLITS[kind],), composes=kind == "Qwen2Tokenizer")
    texts = {name: token_text(settings.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    special = {vocabulary[text]: text for text in texts.values() if text in vocabulary}
    added = [added_token(number, special[number], special=True) for number in sorted(special)]
    begins = settings.get("add_bos_token") is True and texts["bos"] in vocabulary
    return tokenizer_content(parts, added, (texts["bos"], vocabulary[texts["bos"]]) if begins else None)


def token_text(token: Any) -> str:
    """Return a special token's text, which may be inside an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
