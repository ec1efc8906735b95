"""Small random models for the suite's server, created on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.frontends.llm.tokenizer_models import LLAMA3
from compiler.support.processing import Processing
from tests.compiler.frontends.llm.encoder_models import save_encoder_model
from tests.compiler.frontends.processing.nets import centers, net_with
from tests.compiler.generation.models import write_folder

NAMES = ("chat", "chat3", "embed", "detect", "dense", "speech", "vision", "pictures", "rank")


def build(folder: Path) -> Path:
    """Write NAME.twm for each of the names that is missing, and a configuration; returns the configuration.

    A language model that joins sequences, one with Llama 3's pattern, an embedder, a detector (a convolution, then
    non-maximum suppression), a product, small models of the kinds of Whisper and SmolVLM, a detector of pictures,
    and a reranker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Path], object]] = {
        "chat": lambda file: _language(file, pattern=None),
        "chat3": lambda file: _language(file, pattern=LLAMA3),
        "embed": _embedder,
        "detect": _detector,
        "dense": _dense,
        "speech": lambda file: _encoder("whisper", file),
        "vision": lambda file: _encoder("smolvlm", file),
        "pictures": _pictures,
        "rank": _reranker,
    }
    for name, make in makers.items():
        file = folder / f"{name}.twm"
        if not file.exists():
            make(file)
    models: list[dict[str, object]] = [
        {"name": name, "path": str((folder / f"{name}.twm").absolute())} for name in NAMES
    ]
    models[NAMES.index("embed")]["text"] = {"tokenizer": str((folder / "chat" / "tokenizer.json").absolute())}
    configuration = folder / "server.yaml"
    configuration.write_text(json.dumps({"models": models}))  # JSON is YAML
    return configuration


def _language(file: Path, pattern: str | None) -> None:
    folder = file.with_suffix("")
    folder.mkdir(exist_ok=True)
    write_folder(folder, max_position_embeddings=2048)
    if pattern is not None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
        path.write_text(json.dumps(content))
    compiler.compile(folder, threads=1, sequences=True).export(file)


def _encoder(kind: str, file: Path) -> None:
    folder = file.with_suffix("")
    folder.mkdir(exist_ok=True)
    save_encoder_model(kind, folder)
    compiler.compile(folder, threads=1).export(file)


def _dense(file: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "dense", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compiler.compile(model, threads=1).export(file)


def _embedder(file: Path) -> None:
    """A vector per token from a table of 260; tokens outside of it are refused at run time."""
    table = numpy_helper.from_array(np.random.default_rng(0).standard_normal((260, 4)).astype(np.float32), "table")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", 4])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["hidden"])], "e", [ids], [hidden], [table]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compiler.compile(model, threads=1).export(file)


def _reranker(file: Path) -> None:
    """The sum of a number per token from a table of 260."""
    table = numpy_helper.from_array(np.random.default_rng(0).standard_normal(260).astype(np.float32), "table")
    last = numpy_helper.from_array(np.array([1], np.int64), "last")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["numbers"]),
        helper.make_node("ReduceSum", ["numbers", "last"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "rank", [ids], [logits], [table, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tokenizer = str(file.with_name("chat") / "tokenizer.json")
    compiler.compile(model, processing=Processing(task="rerank", tokenizer=tokenizer), threads=1).export(file)


def _pictures(file: Path) -> None:
    """Boxes, in pixels, in an image of any size."""
    boxes, scores = centers()
    net = net_with({"output0": np.concatenate([boxes, scores], 1).T[None]})
    compiler.compile(net, processing=Processing(task="detect"), threads=1).export(file)


def _detector(file: Path) -> None:
    """Boxes and scores of an image of 16 x 16, and the selected boxes."""
    random = np.random.default_rng(0)
    filters = random.standard_normal((6, 3, 4, 4)).astype(np.float32) * 0.1
    constants = {
        "w": filters,
        "to_rows": np.array([1, 6, 16], np.int64),
        "four": np.array([4], np.int64), "six": np.array([6], np.int64), "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64), "most": np.array([8], np.int64),
        "overlap": np.array([0.5], np.float32), "least": np.array([0.1], np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["found"], strides=[4, 4]),
        helper.make_node("Reshape", ["found", "to_rows"], ["rows"]),
        helper.make_node("Slice", ["rows", "zero", "four", "one"], ["corners"]),
        helper.make_node("Transpose", ["corners"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["rows", "four", "six", "one"], ["raw"]),
        helper.make_node("Sigmoid", ["raw"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["kept"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, ["count", 3])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "detect", [image], [kept], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compiler.compile(model, threads=1).export(file)
