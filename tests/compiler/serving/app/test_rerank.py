"""Texts ranked by relevance to a query: in Python, by the command and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import tensorwright
from compiler.cli import main
from compiler.serving.configuration import model_options
from compiler.support.processing import Processing
from tests.compiler.cli.running import isolated_consoles
from tests.compiler.serving.server import Running, dense_file, serving

tokenizers = pytest.importorskip("tokenizers")
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "cat", "sleeps", "stocks", "fall", "dogs", "bark")
QUERY, TEXTS = "cat sleeps", ["stocks fall", "cat cat sleeps", "dogs", "cat " * 40]
# Of each pair: the sum over tokens of a number of the token, counted twice in the second text.
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
score (int64[batch, length] input_ids, int64[batch, length] attention_mask, int64[batch, length] token_type_ids)
  => (float[batch, 1] logits)
  <float[10] table = {0, 0.1, 0.2, 0.3, 0.7, -0.4, 0.25, -0.9, 0.05, 1.5}, int64[1] last = {1}, float one = {1}> {
    numbers = Gather (table, input_ids)
    mask = Cast <to = 1> (attention_mask)
    segments = Cast <to = 1> (token_type_ids)
    factors = Add (segments, one)
    masked = Mul (numbers, mask)
    terms = Mul (masked, factors)
    logits = ReduceSum (terms, last)
}"""
NUMBERS = np.array([0, 0.1, 0.2, 0.3, 0.7, -0.4, 0.25, -0.9, 0.05, 1.5])


def expected() -> list[float]:
    """The scores of `TEXTS`."""
    found = []
    for text in TEXTS:
        ids = [[1, *(WORDS.index(each) for each in QUERY.split()), 2], [*(WORDS.index(e) for e in text.split()), 2]]
        logit = NUMBERS[ids[0]].sum() + 2 * NUMBERS[ids[1]].sum()
        found.append(1 / (1 + np.exp(-logit)))
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("rerank")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    model = onnx.parser.parse_model(MODEL)
    processing = Processing(task="rerank", tokenizer=str(folder / "tokenizer.json"))
    tensorwright.compile(model, processing=processing, threads=1).export(folder / "reranker.twm")
    return folder / "reranker.twm"


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[Running]:
    models = [model_options({"path": str(each)}, "a model") for each in (file, dense_file(file.parent))]
    with serving(models) as running:
        yield running


def test_texts_are_ordered(file: Path) -> None:
    module = tensorwright.load(file)
    found = module.rank(QUERY, TEXTS)
    np.testing.assert_allclose(found.scores, expected(), atol=1e-6)
    assert [each.place for each in found] == list(np.argsort(-np.array(expected()), kind="stable"))
    assert len(module.rank(QUERY, [])) == 0
    with pytest.raises(tensorwright.errors.InputError, match=r"module\.rank"):
        module.predict("a text")


def test_the_command_prints_texts_in_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [argument for each in TEXTS for argument in ("--text", each)]
    with isolated_consoles():
        assert main(["run", str(file), "--query", QUERY, *texts, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [each["index"] for each in results] == list(np.argsort(-np.array(expected()), kind="stable"))


def _ask(server: Running, **fields: Any) -> Any:
    body = {"model": "reranker", "query": QUERY, "documents": TEXTS, **fields}
    return server.ask("POST", "/v1/rerank", json.dumps(body).encode())


def test_requests_are_answered(server: Running) -> None:
    answer = _ask(server, top_n=2, return_documents=True).json
    order = np.argsort(-np.array(expected()), kind="stable")
    assert [each["index"] for each in answer["results"]] == list(order[:2])
    scores = [each["relevance_score"] for each in answer["results"]]
    np.testing.assert_allclose(scores, np.array(expected())[order[:2]], atol=1e-6)
    assert answer["results"][0]["document"] == {"text": TEXTS[order[0]]}
    long = _ask(server, documents=["cat " * 5000, {"text": "dogs"}]).json  # read in a sandbox
    assert {each["index"] for each in long["results"]} == {0, 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"query": 3},
        {"documents": []},
        {"documents": [3]},
        {"top_n": 0},
        {"model": "dense"},
        {"rank_fields": ["a"]},
        {"documents": ["a"] * 3000},
        {"query": "a" * 9000, "documents": ["b"] * 2048},
    ],
)
def test_other_requests_are_refused(server: Running, fields: dict[str, Any]) -> None:
    assert _ask(server, **fields).status in (400, 413)
