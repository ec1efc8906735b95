"""Tokenizers in the form of the tokenizers library, built from vocabularies, merges and scores."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.errors import InvalidModelError
from compiler.support.tokenizer_file import byte_level as byte_level_characters

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # kinds of pieces, numbered as in SentencePiece and GGUF
_SPACE = "\u2581"  # SentencePiece's space character
_LONGEST_PIECE = 1024  # all ways to split a piece are tried

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def tokenizer_content(
    parts: Mapping[str, Any], added: Sequence[Mapping[str, Any]], begin: tuple[str, int] | None
) -> dict[str, Any]:
    """Return a complete file; texts begin with the token `begin`, if there is one."""
    post = None if begin is None else _begin_with(*begin)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "post_processor": post,
        **parts,
    }


def added_token(index: int, text: str, *, special: bool) -> dict[str, Any]:
    """Return a token that is matched before all others."""
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    splits: Sequence[str],
    *,
    whole_words_first: bool = False,
    composes: bool = False,
) -> dict[str, Any]:
    """Return byte-level BPE with merges in order of a list. `composes`: texts are normalized to NFC first."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*map(cut, splits), level]},
        "decoder": {**level, "use_regex": True},
        "model": _pairs(vocabulary, merges, ignore_merges=whole_words_first),
    }


def cut(pattern: str) -> dict[str, Any]:
    """Split off the matches of a regular expression."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def pieces(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], *, prefix: bool, unknown: str
) -> dict[str, Any]:
    """Return pieces with a space marker, and bytes for characters without a piece.

    `prefix`: texts begin as if preceded by a space.
    """
    model = _pairs(vocabulary, merges, unk_token=unknown or None, fuse_unk=True, byte_fallback=True)
    return _with_spaces(model, prefix=prefix)


def unigram(scored: Sequence[tuple[str, float]], unknown: int, *, prefix: bool, byte_fallback: bool) -> dict[str, Any]:
    """Return pieces chosen by the best sum of scores (SentencePiece's Unigram).

    `prefix`: texts begin as if preceded by a space.
    """
    tables = {"unk_id": unknown, "vocab": [list(each) for each in scored], "byte_fallback": byte_fallback}
    return _with_spaces({"type": "Unigram", **tables}, prefix=prefix)


def _with_spaces(model: dict[str, Any], *, prefix: bool) -> dict[str, Any]:
    """Return a tokenizer whose pieces contain a space marker."""
    steps = [_replaced({"String": " "}, _SPACE)]
    decoders: list[dict[str, Any]] = [_replaced({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def with_rules(parts: Mapping[str, Any], characters: bytes, *, collapses: bool) -> dict[str, Any]:
    """Return a tokenizer that first replaces characters by SentencePiece's rules, if there are any, and spaces by one,
    without those around the text (`collapses`)."""
    steps: list[dict[str, Any]] = []
    if characters:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(characters).decode()})
    if collapses:
        steps += [_replaced({"Regex": r"\A +| +\z"}, ""), _replaced({"Regex": " {2,}"}, " ")]
    return {**parts, "normalizer": {"type": "Sequence", "normalizers": [*steps, *parts["normalizer"]["normalizers"]]}}


def _replaced(pattern: dict[str, str], text: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": text}


def _pairs(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], **settings: Any) -> dict[str, Any]:
    """Return a BPE model with these settings instead of the library's defaults."""
    defaults = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    tables = {"vocab": dict(vocabulary), "merges": [list(pair) for pair in merges]}
    return {"type": "BPE", **defaults, **settings, **tables}


def longest_match(tokens: Mapping[bytes, int], unknown: bytes) -> dict[str, Any] | None:
    """Longest-match tokenizer (RWKV), as byte-level WordPiece without a prefix; None if some byte has no token, since
    WordPiece would make a whole text unknown. `unknown`: a token that is never used as such."""
    if not {bytes([byte]) for byte in range(256)} <= tokens.keys():
        return None
    characters = {byte: character for character, byte in byte_level_characters().items()}
    texts = {token: "".join(characters[byte] for byte in token) for token in tokens}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "WordPiece",
        "unk_token": texts[unknown],
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 1 << 30,
        "vocab": {texts[token]: index for token, index in tokens.items() if token},
    }
    return {"normalizer": None, "pre_tokenizer": level, "decoder": level, "model": model}


def check_pieces(tokens: Sequence[str], origin: str) -> None:
    """Raise InvalidModelError if a piece is too long for `scored_merges`."""
    longest = max(map(len, tokens), default=0)
    if longest > _LONGEST_PIECE:
        raise InvalidModelError(f"{origin}: a token has {longest} characters, but at most {_LONGEST_PIECE} are read")


def scored_merges(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[list[str]]:
    """Return all ways to merge two pieces into one, best pieces first."""
    ids = {text: index for index, text in enumerate(tokens)}
    merges = []
    for text, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind not in (NORMAL, USER, UNUSED):
            continue
        pairs = [(text[:end], text[end:]) for end in range(1, len(text))]
        local = [(left, right) for left, right in pairs if left in ids and right in ids]
        local.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(score, pair) for pair in local]
    merges.sort(key=lambda entry: -entry[0])
    return [list(pair) for _, pair in merges]


def _begin_with(text: str, index: int) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}},
    }
