"""Folders of ONNX Runtime GenAI run unchanged: a 4-bit graph like its builder's, against ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.errors import InvalidModelError, OptionError, StorageError
from compiler.generation.language_model import LanguageModel

ort = pytest.importorskip("onnxruntime")

_HIDDEN, _INNER, _HEADS, _KEY_HEADS, _SIZE, _VOCABULARY, _GROUP = 64, 96, 4, 2, 16, 96, 32
_QKV = (_HEADS + 2 * _KEY_HEADS) * _SIZE


def _plain_attention(arrays: dict[str, Any], node: Callable[..., None], product: Callable[..., str]) -> None:
    """MultiHeadAttention over concatenated keys, which are repeated for the heads that share them, with a mask."""
    ints: dict[str, Any] = {
        "to_heads": [0, 0, _KEY_HEADS, -1],
        "shared": [1, 1, 2, 1, 1],
        "repeated": [1, _HEADS, -1, _SIZE],
        "flat": [0, 0, _HEADS * _SIZE],
        "axes01": [0, 1],
        "axis2": [2],
        "last": [1],
        "first": [0],
        "zero": 0,
        "unit": 1,
    }
    arrays |= {name: np.array(value) for name, value in ints.items()} | {"hidden": np.array([-1e9], np.float32)}
    arrays["shown"] = np.zeros(1, np.float32)
    for name, part in (("k", "key"), ("v", "value")):
        node("Reshape", [product("n0", name, _HIDDEN, _KEY_HEADS * _SIZE), "to_heads"], [f"{name}1"], "")
        node("Transpose", [f"{name}1"], [f"{name}2"], "", perm=[0, 2, 1, 3])
        node("Concat", [f"past_key_values.0.{part}", f"{name}2"], [f"present.0.{part}"], "", axis=2)
        node("Unsqueeze", [f"present.0.{part}", "axis2"], [f"{name}3"], "")
        node("Expand", [f"{name}3", "shared"], [f"{name}4"], "")
        node("Reshape", [f"{name}4", "repeated"], [f"{name}5"], "")
        node("Transpose", [f"{name}5"], [f"{name}6"], "", perm=[0, 2, 1, 3])
        node("Reshape", [f"{name}6", "flat"], [f"{name}7"], "")
    for name, source in (("rows_", "input_ids"), ("all_", "attention_mask")):
        node("Shape", [source], [f"{name}shape"], "")
        node("Gather", [f"{name}shape", "unit"], [f"{name}count"], "", axis=0)
    node("Sub", ["all_count", "rows_count"], ["start"], "")
    node("Range", ["start", "all_count", "unit"], ["queries"], "")
    node("Range", ["zero", "all_count", "unit"], ["keys"], "")
    node("Unsqueeze", ["queries", "last"], ["column"], "")
    node("Unsqueeze", ["keys", "first"], ["line"], "")
    node("Greater", ["line", "column"], ["later"], "")
    node("Where", ["later", "hidden", "shown"], ["mask2"], "")
    node("Unsqueeze", ["mask2", "axes01"], ["mask4"], "")
    query = product("n0", "q", _HIDDEN, _HEADS * _SIZE)
    node("MultiHeadAttention", [query, "k7", "v7", "", "", "mask4"], ["attended"], num_heads=_HEADS)


def _write(folder: Path, *, plain: bool = False) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def node(
        kind: str, inputs: list[str], outputs: list[str], domain: str = "com.microsoft", **attributes: Any
    ) -> None:
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))

    def product(data: str, name: str, depth: int, columns: int) -> str:
        groups = depth // _GROUP
        arrays[f"{name}_Q4"] = random.integers(0, 256, (columns, groups, _GROUP // 2), np.uint8)
        arrays[f"{name}_scales"] = random.uniform(0.02, 0.05, (columns, groups)).astype(np.float32)
        names = [data, f"{name}_Q4", f"{name}_scales"]
        node("MatMulNBits", names, [f"{name}_out"], K=depth, N=columns, bits=4, block_size=_GROUP, accuracy_level=1)
        return f"{name}_out"

    def vector(name: str, size: int) -> str:
        arrays[name] = random.uniform(0.5, 1.5, size).astype(np.float32)
        return name

    node("ReduceSum", ["attention_mask", "one"], ["sum"], domain="", keepdims=0)
    node("Sub", ["sum", "one"], ["less"], domain="")
    node("Cast", ["less"], ["lengths"], domain="", to=TensorProto.INT32)
    node("Shape", ["attention_mask"], ["shape"], domain="")
    node("Gather", ["shape", "index"], ["size"], domain="", axis=0)
    node("Cast", ["size"], ["total"], domain="", to=TensorProto.INT32)
    node("Reshape", ["head_Q4", "table"], ["rows"], domain="")
    tied = ["rows", "input_ids", "head_scales"]
    node("GatherBlockQuantized", tied, ["x0"], bits=4, block_size=_GROUP, gather_axis=0, quantize_axis=1)
    norm: dict[str, Any] = {"domain": "", "axis": -1, "stash_type": 1, "epsilon": 1e-5}
    node("SimplifiedLayerNormalization", ["x0", vector("norm0", _HIDDEN)], ["n0"], **norm)
    if plain:
        _plain_attention(arrays, node, product)
    else:
        pasts = ["past_key_values.0.key", "past_key_values.0.value"]
        attention = [product("n0", "qkv", _HIDDEN, _QKV), "", "", *pasts, "lengths", "total", "cosines", "sines"]
        results = ["attended", "present.0.key", "present.0.value"]
        node("GroupQueryAttention", attention, results, num_heads=_HEADS, kv_num_heads=_KEY_HEADS, do_rotary=1)
    skip = ["x0", product("attended", "o", _HIDDEN, _HIDDEN), vector("norm1", _HIDDEN)]
    node("SkipSimplifiedLayerNormalization", skip, ["n1", "", "", "x1"], epsilon=1e-5)
    up = product("n1", "up", _HIDDEN, _INNER)
    node("Sigmoid", [up], ["gate"], domain="")
    node("Mul", [up, "gate"], ["inner"], domain="")
    skip = ["x1", product("inner", "down", _INNER, _HIDDEN), vector("norm2", _HIDDEN)]
    node("SkipSimplifiedLayerNormalization", skip, ["n2"], epsilon=1e-5)
    product("n2", "head", _HIDDEN, _VOCABULARY)
    nodes[-1].output[0] = "logits"
    angles = np.arange(64)[:, None] * 10000.0 ** (-np.arange(_SIZE // 2) / (_SIZE // 2))
    arrays |= {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}
    arrays |= {"one": np.array([1]), "index": np.array(1), "table": np.array([_VOCABULARY, _HIDDEN // 2])}

    def value(name: str, kind: int, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(shape))

    caches = [f"{{}}.0.{part}" for part in ("key", "value")]
    rows = ("batch", _KEY_HEADS, "past", "width"), ("batch", _KEY_HEADS, "all", "width")
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            value("input_ids", TensorProto.INT64, "batch", "length"),
            value("attention_mask", TensorProto.INT64, "batch", "all"),
            *(value(name.format("past_key_values"), TensorProto.FLOAT, *rows[0]) for name in caches),
        ],
        [
            value("logits", TensorProto.FLOAT, "batch", "length", _VOCABULARY),
            *(value(name.format("present"), TensorProto.FLOAT, *rows[1]) for name in caches),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=256)
    decoder = {"filename": "model.onnx", "head_size": _SIZE, "inputs": {}, "outputs": {}}
    decoder["inputs"] = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    decoder["outputs"] = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    config = {
        "type": "llama",
        "context_length": 64,
        "vocab_size": _VOCABULARY,
        "eos_token_id": [95],
        "decoder": decoder,
    }
    (folder / "genai_config.json").write_text(json.dumps({"model": config}))


@pytest.mark.parametrize("plain", [False, True])
def test_a_folder_gives_the_logits_of_onnx_runtime(plain: bool, tmp_path: Path) -> None:
    _write(tmp_path, plain=plain)
    model = LanguageModel(compiler.compile(tmp_path, threads=1))
    assert (model.description.context, model.description.stop_tokens) == (64, (95,))
    reference = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    session = model.module.session(capacity=32)
    empty = np.zeros((1, _KEY_HEADS, 0, _SIZE), np.float32)
    key, value, seen = empty, empty, 0
    for step in ([5, 9, 3, 77, 20], [1], [60], [2, 3]):
        seen += len(step)
        tokens = np.array([step])
        given = {"input_ids": tokens, "attention_mask": np.ones((1, seen), np.int64)}
        given |= {"past_key_values.0.key": key, "past_key_values.0.value": value}
        logits, key, value = reference.run(None, given)
        found = session.run([tokens])["logits"][0, 0]
        np.testing.assert_allclose(found, logits[0, -1], rtol=0, atol=1e-4 * abs(logits).max())
    assert model.generate([5, 9, 3], max_new_tokens=4).prompt_tokens == 3


def test_what_does_not_fit_is_one_error(tmp_path: Path) -> None:
    _write(tmp_path)
    with pytest.raises(OptionError, match="compiled as it is"):
        compiler.compile(tmp_path, precision="int4")
    (tmp_path / "model.onnx.data").write_bytes(b"")
    with pytest.raises((InvalidModelError, StorageError)):
        compiler.compile(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(StorageError, match=r"lacks model\.onnx"):
        compiler.compile(tmp_path)


def test_a_mask_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, plain=True)
    model = onnx.load(tmp_path / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "Greater").op_type = "Less"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(OptionError, match="only causal attention"):
        compiler.compile(tmp_path)
