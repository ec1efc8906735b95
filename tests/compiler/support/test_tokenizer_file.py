"""Invalid tokenizer files give errors that name the field."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import ArtifactError, InputError
from compiler.generation.tokenizer import Tokenizer
from compiler.support.tokenizer_file import read_tokenizer
from tests.compiler.generation.models import SPECIAL, byte_tokenizer

tokenizers = pytest.importorskip("tokenizers")
Edit = Callable[[dict[str, Any]], object]


def content(edit: Edit) -> bytes:
    described = byte_tokenizer(SPECIAL)
    edit(described)
    return json.dumps(described).encode()


def tokenizer(edit: Edit) -> Tokenizer:
    description = LanguageModelDescription(architecture="llama", context=96, vocabulary=260)
    return Tokenizer(content(edit), description)


def character_map(units: list[int], texts: bytes) -> dict[str, str]:
    trie = np.array(units, "<u4").tobytes()
    encoded = base64.b64encode(len(trie).to_bytes(4, "little") + trie + texts).decode()
    return {"type": "Precompiled", "precompiled_charsmap": encoded}


def a_to_b(texts: bytes = b"b\0", value: int = 0, offset: int = 256) -> dict[str, str]:
    """A trie of one key: "a"."""
    units = [0] * 768
    units[0] = offset << 10
    node = (offset ^ ord("a")) % len(units)
    units[node] = (1 << 8) | ord("a") | ((node ^ 512) << 10)  # its value is unit 512
    units[512] = (1 << 31) | value
    return character_map(units, texts)


def test_a_sound_character_map_is_used() -> None:
    found = read_tokenizer(content(lambda each: each.update(normalizer=a_to_b())))
    assert found.normalizer.normalize_str("cab") == "cbb"


_TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}], "pair": []}


@pytest.mark.parametrize(
    ("field", "edit"),
    [
        ("precompiled_charsmap", lambda each: each.update(normalizer={**a_to_b(), "precompiled_charsmap": "/////w=="})),
        (
            "precompiled_charsmap",
            lambda each: each.update(normalizer={**a_to_b(), "precompiled_charsmap": "AAAA/////w=="}),
        ),
        ("precompiled_charsmap", lambda each: each.update(normalizer={**a_to_b(), "precompiled_charsmap": "?"})),
        ("precompiled_charsmap", lambda each: each.update(normalizer=a_to_b(value=2))),
        ("precompiled_charsmap", lambda each: each.update(normalizer=a_to_b("ä\0".encode(), value=1))),
        ("precompiled_charsmap", lambda each: each.update(normalizer=a_to_b(offset=1 << 20))),
        ("precompiled_charsmap", lambda each: each.update(normalizer=a_to_b(b"\xff\0"))),
        (
            r"normalizer\.normalizers\[1\]",
            lambda each: each.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 5,
                }
            ),
        ),
        ("normalizer", lambda each: each.update(normalizer={"type": "Prepend", "prepend": "x" * 10_000})),
        (
            r"post_processor\.single.*'nope'",
            lambda each: each.update(post_processor={**_TEMPLATE, "special_tokens": {}}),
        ),
        (
            "decoder.stop",
            lambda each: each.update(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 2**62}),
        ),
        (
            r"model\.unk_token",
            lambda each: each.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"}),
        ),
        (
            r"model\.unk_token",
            lambda each: each["model"].update(
                type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=9
            ),
        ),
    ],
)
def test_fields_that_the_library_trusts_are_checked(field: str, edit: Edit) -> None:
    with pytest.raises(ArtifactError, match=field):
        read_tokenizer(content(edit))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 200_000, b'{"model": 5}'])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="tokenizer"):
        read_tokenizer(data)


def _split(expression: str) -> Edit:
    part = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return lambda each: each.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [part, each["pre_tokenizer"]]})


def test_expressions_that_give_up_are_named() -> None:
    found = tokenizer(_split("(a+)+$"))
    with pytest.raises(InputError, match=r"cannot read the text[^$]*pre_tokenizer\.pretokenizers\[0\]\.pattern\.Regex"):
        found.encode("a" * 40 + "!")


def test_an_unknown_character_without_a_token_for_it_is_refused() -> None:
    model = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}
    with pytest.raises(InputError, match="unk_id"):
        tokenizer(lambda each: each.update(model=model)).encode("z")


def test_fallback_bytes_that_are_none_are_texts() -> None:
    def edit(each: dict[str, Any]) -> None:
        each["decoder"] = {"type": "ByteFallback"}
        each["model"]["vocab"] = {"<0xZZ>": 0, "<0x4a>": 1}

    assert tokenizer(edit).token_bytes(2) == [b"<0xZZ>", b"J"]
