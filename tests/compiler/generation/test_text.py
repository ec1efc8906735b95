"""Streams of text: whole characters, stop texts across pieces; and sampling of tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from compiler.errors import InputError, OptionError
from compiler.generation.options import GenerationOptions
from compiler.generation.output import StopTexts, TextStream
from compiler.generation.sampling import Sampler
from tests.compiler.generation.other_tokenizers import OTHER_TOKENIZERS


def _decoded(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def test_characters_are_given_out_whole() -> None:
    text = "né 漢字 🎉👨‍👩‍👧 ok"
    stream = TextStream(lambda tokens: _decoded(list(tokens)))
    pieces = [stream.add(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.end() == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_space_behind_a_special_token_is_kept() -> None:
    tokenizer = OTHER_TOKENIZERS["bert"]()
    tokens = tokenizer.encode("the <s><|end|> quick <s> fox", add_special_tokens=False).ids
    stream = TextStream(lambda each: str(tokenizer.decode(list(each))))
    pieces = "".join(stream.add(token) for token in tokens) + stream.end()
    assert pieces == tokenizer.decode(tokens) == "the quick fox"


def test_bytes_that_are_no_characters_come_out_as_such() -> None:
    stream = TextStream(lambda tokens: _decoded(list(tokens)))
    pieces = [stream.add(byte) for byte in b"a\xff\xfe\xf0\x9fb\xe2\x82"]
    assert "".join(pieces) + stream.end() == b"a\xff\xfe\xf0\x9fb\xe2\x82".decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "wanted", "found"),
    [
        (["ab", "cSTO", "Pd"], "abc", True),
        (["S", "T", "O", "x"], "STOx", False),
        (["xEN", "D", "y"], "x", True),
        (["STSTOP"], "ST", True),
        (["a", "ST"], "aST", False),
    ],
)
def test_stop_texts_are_found_across_pieces(pieces: list[str], wanted: str, found: bool) -> None:
    stop = StopTexts(["STOP", "END"])
    given = [stop.add(piece) for piece in pieces]
    assert "".join(given) + stop.end() == wanted
    assert stop.found is found


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"top_k": 3, "min_p": 0.4}, {0, 1}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_only_likely_tokens_are_drawn_as_often_as_they_are_likely(
    settings: dict[str, float], allowed: set[int]
) -> None:
    chances = np.array([0.5, 0.25, 0.17, 0.08], np.float32)
    sampler = Sampler(GenerationOptions(temperature=1.0, seed=5, **settings), [])  # type: ignore[arg-type]
    drawn = Counter(sampler.choose(np.log(chances)) for _ in range(2000))
    assert set(drawn) == allowed
    for token in allowed:
        assert drawn[token] / 2000 == pytest.approx(chances[token] / chances[sorted(allowed)].sum(), abs=0.05)


def test_a_penalty_makes_seen_tokens_less_likely() -> None:
    sampler = Sampler(GenerationOptions(repetition_penalty=2.0), [0, 2])
    assert sampler.choose(np.array([3.0, 2.0, -1.0], np.float32)) == 1
    assert sampler.choose(np.array([3.0, 2.0, 1.4], np.float32)) == 0  # 1.5, 1, 0.7: token 1 was seen by now


def test_penalties_count_the_tokens_of_the_result_alone() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)
    often = Sampler(GenerationOptions(frequency_penalty=0.75), [0, 0, 0])
    assert [often.choose(logits) for _ in range(5)] == [0, 0, 1, 0, 1]  # 3, 2.25, 1.5 < 2, 1.5 > 1.25, 0.75 < 1.25
    once = Sampler(GenerationOptions(presence_penalty=1.5), [1])
    assert [once.choose(logits) for _ in range(4)] == [0, 1, 0, 0]


def test_biases_are_added_to_logits() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)
    assert Sampler(GenerationOptions(logit_bias={0: -100, 2: 0.5}), []).choose(logits) == 1
    assert Sampler(GenerationOptions(logit_bias={2: 2.5}), []).choose(logits) == 2
    for wrong in ({0: 101}, {-1: 1}, {"a": 1}, {0: float("nan")}):
        with pytest.raises(OptionError, match="logit_bias must have"):
            GenerationOptions(logit_bias=wrong)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_the_smallest_temperature_and_the_largest_penalty_do_not_overflow() -> None:
    coldest = Sampler(GenerationOptions(temperature=5e-324, seed=1), [])
    assert coldest.choose(np.array([3.0, 9.0, -4.0], np.float32)) == 1
    harshest = Sampler(GenerationOptions(repetition_penalty=1e300), [0, 1, 2])
    assert harshest.choose(np.array([0.0, -1.0, 5.0, -0.5], np.float32)) == 2  # 0, -inf, just above 0
    for temperature in (0.0, 1.0):
        mildest = Sampler(GenerationOptions(repetition_penalty=5e-324, temperature=temperature, min_p=0.1), [0, 1, 2])
        assert mildest.choose(np.array([0.0, -1.0, 5.0, 9.0], np.float32)) == 2


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(InputError, match="logits that are NaN"):
        Sampler(GenerationOptions(), []).choose(np.array([np.nan, 1], np.float32))
    with pytest.raises(InputError, match="logits that are NaN"):
        Sampler(GenerationOptions(temperature=1.0, min_p=0.1), []).choose(np.array([1, np.inf, np.nan], np.float32))
