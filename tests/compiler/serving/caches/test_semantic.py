"""The semantic cache: texts that the gate distinguishes, calibration and its refusals, and hits."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.cli import main
from compiler.errors import AccuracyError, InputError, OptionError
from compiler.runtime import Module, load
from compiler.runtime.prediction.texts import TextEmbedder
from compiler.serving.caches.memory import Answer
from compiler.serving.caches.semantic import SemanticCache, SemanticIndex, token_text
from compiler.serving.caches.semantic_calibration import (
    LabelledPair,
    SemanticCalibration,
    agree,
    calibrate_semantic_cache,
    read_calibration,
    synonym_table,
    wording_of,
)
from compiler.serving.limits import INLINE_TEXT
from compiler.serving.request import Request
from tests.compiler.generation.models import byte_tokenizer
from tests.compiler.runtime.building import build_artifact
from tests.compiler.serving.services import Array, FunctionService

from tvm import relax  # isort: skip

SAME = [
    ("How do I turn on dark mode?", "how can you turn on the dark mode"),
    ("How to enable two factor login", "How to enable two-factor logins?"),
    ("What is the capital of France?", "Please tell me the capital of France"),
    ("It isn't safe", "It is not safe."),
    ("Movies about cities", "A movie about a city"),
]
DIFFERENT = [
    ("How do I turn on dark mode?", "How do I turn off dark mode?"),
    ("How to enable two factor login", "How to disable two factor login"),
    ("Is aspirin safe with alcohol?", "Is aspirin unsafe with alcohol?"),
    ("Flights from Paris to Rome", "Flights from Rome to Paris"),
    ("It isn't safe", "It is safe"),
    ("Can I call you", "Can you call me"),
    ("Who is the president", "Who was the president"),
    ("When was he born", "Where was he born"),
    ("What is 2+2", "What is 2-2"),
    ("rounded to 3.5", "rounded to 35"),
    ("Which foods have vitamin A", "Which foods have vitamin"),
    ("", ""),
]


def agrees(pair: tuple[str, str], extra: int = 0) -> bool:
    return agree(wording_of(pair[0]), wording_of(pair[1]), extra)


def test_the_gate_reads_words_and_their_order() -> None:
    assert [pair for pair in SAME if not agrees(pair)] == []
    assert [pair for pair in DIFFERENT if agrees(pair)] == []
    assert [pair for pair in DIFFERENT if agrees(pair, 2)] == [
        ("Which foods have vitamin A", "Which foods have vitamin")
    ]
    table = synonym_table([("film", "movie")])
    one, other = (wording_of(text, table) for text in ("good movies of 2020", "Good films of 2020"))
    assert agree(one, other)


class Words:
    """Places texts by their words, whatever the order; as blind to negation as real embedders are nearly."""

    identity = "words"

    def __init__(self) -> None:
        self.embedded = 0

    def embed(self, texts: Sequence[str]) -> Array:
        self.embedded += len(texts)
        vectors = np.full((len(texts), 64), 0.01, np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"[a-z]+", text.lower()):
                vectors[row, sum(map(ord, word)) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pairs() -> list[LabelledPair]:
    towns = ["Paris", "Rome", "Oslo", "Bern", "Cairo", "Lima", "Quito", "Delhi"]
    routes = [(one, other) for one in towns for other in towns if one < other]
    same = [LabelledPair(f"Flights from {a} to {b}", f"the flights from {a} to {b}?", True) for a, b in routes]
    turned = [LabelledPair(f"Flights from {a} to {b}", f"Flights from {b} to {a}", False) for a, b in routes]
    more = [LabelledPair(f"Hotels in {town}", f"No hotels in {town}", False) for town in towns]
    return [*same, *turned, *[LabelledPair(f"Hotels in {a}", f"Hotels in {a}!", True) for a in towns], *more]


def test_calibration_measures_false_hits_on_pairs_it_did_not_choose_by() -> None:
    found = calibrate_semantic_cache(Words(), pairs())
    assert found.hit_rate > 0.8
    assert found.false_hit_rate == 0
    assert found.without_gate > 0.5  # what a threshold alone would do
    assert found.false_hit_bound == pytest.approx(1 - 0.05 ** (1 / 36), abs=1e-9)  # none of 36: the exact bound
    with pytest.raises(OptionError, match="too few"):
        calibrate_semantic_cache(Words(), pairs()[:40])
    wrong = [LabelledPair(each.one, each.other, not each.same) for each in pairs()]
    with pytest.raises(AccuracyError, match="never hit"):
        calibrate_semantic_cache(Words(), wrong)
    mixed = [LabelledPair(each.one, each.one.upper(), index % 2 == 0) for index, each in enumerate(pairs())]
    with pytest.raises(AccuracyError):
        calibrate_semantic_cache(Words(), mixed)


def test_no_start_without_the_calibration_of_this_embedder() -> None:
    found = calibrate_semantic_cache(Words(), pairs())
    nothing: Any = None
    with pytest.raises(OptionError, match="without a calibration"):
        SemanticIndex(Words(), nothing)
    other = Words()
    other.identity = "others"
    with pytest.raises(OptionError, match="another embedder"):
        SemanticIndex(other, found)


def calibration(**changes: Any) -> SemanticCalibration:
    return SemanticCalibration(**{**vars(calibrate_semantic_cache(Words(), pairs())), **changes})


def test_the_index_finds_by_words_and_forgets_the_least_used() -> None:
    now = [0.0]
    index: SemanticIndex[int] = SemanticIndex(Words(), calibration(), max_entries=2, max_age=5.0, clock=lambda: now[0])
    index.add("Flights from Paris to Rome", 1)
    index.add("Hotels in Oslo", 2)
    assert index.find("Flights from Rome to Paris") is None
    assert index.find("the flights from Paris to Rome?", "another scope") is None
    hit = index.find("the flights from Paris to Rome?")
    assert hit is not None
    assert (hit.value, hit.text) == (1, "Flights from Paris to Rome")
    index.add("Hotels in Lima", 3)
    assert index.find("Hotels in Oslo") is None
    assert len(index) == 2
    now[0] = 6.0
    assert index.find("the flights from Paris to Rome?") is None


def test_a_service_answers_texts_of_one_meaning_once() -> None:
    texts = {1.0: "Hotels in Oslo", 2.0: "Hotels in Oslo!", 3.0: "No hotels in Oslo"}

    def text_of(request: Request) -> str | None:
        return texts[float(request.inputs["x"][0, 0])] if len(request.inputs["x"]) == 1 else None

    def ask(value: float, rows: int = 1, **fields: Any) -> Request:
        return Request({"x": np.full((rows, 2), value, np.float32)}, **fields)

    async def scenario() -> None:
        service = FunctionService()
        index: SemanticIndex[Answer] = SemanticIndex(Words(), calibration())
        cache = SemanticCache(service, index, text_of, textual=("x",))
        first = await cache.infer(ask(1.0))
        hit = await cache.infer(ask(2.0))
        assert (first.cached, hit.cached) == (None, "semantic")
        assert set(hit.notes) == {"similarity"}  # and not another client's text
        assert np.array_equal(hit.outputs["y"], first.outputs["y"])
        others = [ask(3.0), ask(2.0, outputs=("y",)), ask(2.0, traced=True), ask(2.0, rows=2)]
        assert [(await cache.infer(each)).cached for each in others] == [None] * 4
        await cache.close()

    asyncio.run(scenario())


def test_long_texts_pass_by_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_tokenizer([])))
    text_of = token_text(path, "input_ids")

    def text(tokens: list[int]) -> str | None:
        return text_of(Request({"input_ids": np.array([tokens])}))

    assert text(list(b"Hotels")) == "Hotels"
    assert text([97] * INLINE_TEXT) is not None
    assert text([97] * (INLINE_TEXT + 1)) is None
    with pytest.raises(InputError, match="cannot write the tokens"):
        text([-1])


def test_the_command_calibrates_a_compiled_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({word for each in pairs() for text in (each.one, each.other) for word in text.lower().split()})
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: 2 + place for place, word in enumerate(words)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = np.random.default_rng(0).standard_normal((len(vocabulary), 16)).astype(np.float32)
    tokens = [(name, ("batch", "length"), "int64") for name in ("input_ids", "attention_mask")]
    artifact = build_artifact(
        tokens,
        [("hidden", ("batch", "length", 16), "float32")],
        lambda ids, mask: [relax.op.take(relax.const(table), ids, axis=0)],
    )
    Module(artifact).export(tmp_path / "embedder.twm")

    embedder = TextEmbedder(load(tmp_path / "embedder.twm"), tmp_path / "tokenizer.json")
    vectors = embedder.embed(["hotels in oslo", "flights"])
    expected = table[[vocabulary[word] for word in ("hotels", "in", "oslo")]].mean(axis=0)
    assert np.allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-6)

    lines = [json.dumps(vars(each)) for each in pairs()]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    output = tmp_path / "semantic.json"
    arguments = [str(tmp_path / "embedder.twm"), "--tokenizer", str(tmp_path / "tokenizer.json")]
    main(["calibrate", "semantic-cache", *arguments, "--pairs", str(tmp_path / "pairs.jsonl"), "-o", str(output)])
    assert "0.0% do (at most 8.0%" in " ".join(capsys.readouterr().out.split())
    found = read_calibration(output)
    assert found.embedder == embedder.identity
    assert found.false_hit_rate == 0
    with pytest.raises(OptionError, match="not a calibration"):
        read_calibration(tmp_path / "tokenizer.json")
