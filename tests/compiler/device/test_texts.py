"""Texts without Python: the runner and static executables give the vectors of `predict`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import targets
import tensorwright
from compiler.device.programs import device_programs

TEXTS = ["the cat sleeps", "", "naïve 😀 cats!", "cat " * 40]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "sleep", "naive", "!"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT's, with ten tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def embedder(tokenizer: Path, path: Path, batch: int | str, length: int | str, pooled: bool) -> Path:
    """A module whose token vectors depend on the mask and on the positions of the tokens."""
    ids, mask, kinds = (
        helper.make_tensor_value_info(name, kind, [batch, length])
        for name, kind in (
            ("input_ids", TensorProto.INT64),
            ("attention_mask", TensorProto.INT64),
            ("token_type_ids", TensorProto.INT32),
        )
    )
    shape = [batch, 5] if pooled else [batch, length, 5]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    table = np.random.default_rng(0).standard_normal((len(WORDS), 5)).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["input_ids", "attention_mask"], ["shifted"]),
        helper.make_node("Cast", ["token_type_ids"], ["kind"], to=TensorProto.INT64),
        helper.make_node("Add", ["shifted", "kind"], ["all"]),
        helper.make_node("Mod", ["all", "size"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["rows"]),
        helper.make_node("CumSum", ["rows", "axis"], ["y" if not pooled else "sums"]),
        *([helper.make_node("ReduceMean", ["sums", "axis_list"], ["y"], keepdims=0)] if pooled else []),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array(len(WORDS)), "size"),
        numpy_helper.from_array(np.array(1), "axis"),
        numpy_helper.from_array(np.array([1]), "axis_list"),
    ]
    graph = helper.make_graph(nodes, "embedder", [ids, mask, kinds], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    processing = tensorwright.Processing(task="embed", tokenizer=str(tokenizer))
    tensorwright.compile(model, processing=processing, threads=1).export(path)
    return path


def run(module: Path, *options: str, code: int = 0) -> str:
    program = device_programs(targets.get("host", cores=1)) / "tensorwright-run"
    done = subprocess.run([program, module, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.parametrize(("batch", "length", "pooled"), [("n", "m", False), (2, 8, False), (1, 8, True)])
def test_the_runner_gives_the_vectors_of_predict(
    tokenizer: Path, tmp_path: Path, batch: int | str, length: int | str, pooled: bool
) -> None:
    module = embedder(tokenizer, tmp_path / "net.twm", batch, length, pooled)
    options = [part for text in TEXTS for part in ("--text", text)]
    found = json.loads(run(module, *options, "--json"))["predictions"]
    assert [each["input"] for each in found] == TEXTS
    loaded = tensorwright.load(module)
    for text, each in zip(TEXTS, found, strict=True):
        expected = loaded.predict(text)
        assert isinstance(expected, tensorwright.Vector)
        np.testing.assert_allclose(each["vector"], expected.values, rtol=0, atol=1e-6)
    assert "(5 numbers; --json prints all)" in run(module, "--text", TEXTS[0])


def test_what_cannot_be_done_is_said(tokenizer: Path, tmp_path: Path) -> None:
    module = embedder(tokenizer, tmp_path / "net.twm", "n", 1, False)
    assert "fewer tokens than its tokenizer adds to a text" in run(module, "--text", "cat", code=1)
    assert "leave out files" in run(module, "--text", "cat", "a.png", code=1)
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    tensorwright.compile(helper.make_model(graph), threads=1).export(tmp_path / "plain.twm")
    assert "has no tokenizer for programs without Python" in run(tmp_path / "plain.twm", "--text", "cat", code=1)
