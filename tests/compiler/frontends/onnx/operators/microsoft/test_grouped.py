"""GroupQueryAttention and block-quantized weights against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tensorwright
from compiler.errors import InputError, UnsupportedModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model, run_reference
from tests.compiler.frontends.onnx.operators.test_microsoft import _check, _f, _u8
from tests.coverage.tvm_pipeline import Run, build, import_and_build

_HEADS, _SIZE = 4, 16


def _inputs(batch: int, new: int, past: int, last: list[int], groups: int = 2, packed: bool = False) -> dict[str, Any]:
    """`past` is the length of the cache, `last` the last position of each sample."""
    width = (_HEADS + 2 * groups) * _SIZE if packed else _HEADS * _SIZE
    pair = (None, None) if packed else (_f(batch, new, groups * _SIZE), _f(batch, new, groups * _SIZE))
    return {
        "q": _f(batch, new, width),
        "k": pair[0],
        "v": pair[1],
        "pk": _f(batch, groups, past, _SIZE),
        "pv": _f(batch, groups, past, _SIZE),
        "l": np.array(last, np.int32),
        "t": np.array(max(last) + 1, np.int32),
    }


_NOT_ROTATED = {"c": None, "s": None, "p": None}
_TABLES = {"c": _f(16, _SIZE // 2), "s": _f(16, _SIZE // 2)}


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (_inputs(2, 1, 4, [4, 4]), {}),
        (_inputs(2, 1, 4, [4, 2]) | _TABLES, {"do_rotary": 1}),
        (_inputs(1, 4, 0, [3]) | _TABLES, {"do_rotary": 1, "rotary_interleaved": 1}),
        (_inputs(1, 4, 0, [3], 1, packed=True) | _TABLES, {"do_rotary": 1}),
        (_inputs(1, 1, 6, [6]), {"local_window_size": 3}),
        (_inputs(1, 3, 4, [6]), {"softcap": 5.0, "scale": 0.3}),
        (_inputs(1, 1, 4, [4]) | _NOT_ROTATED | {"b": _f(1, _HEADS, 1, 5)}, {}),
        (_inputs(1, 1, 4, [4]), {"smooth_softmax": 1}),
        (_inputs(1, 1, 4, [4]) | _NOT_ROTATED | {"b": None, "h": _f(_HEADS)}, {}),
    ],
    ids=["token", "ragged", "prompt", "packed", "window", "chunk", "bias", "smooth", "sinks"],
)
@pytest.mark.parametrize("total", ["known", "input"])
def test_grouped_attention(inputs: dict[str, Any], attributes: dict[str, Any], total: str) -> None:
    groups = inputs["pk"].shape[1]
    constants = ("t",) if total == "known" else ()
    _check("GroupQueryAttention", inputs, 3, constants=constants, num_heads=_HEADS, kv_num_heads=groups, **attributes)


def test_a_shared_buffer_is_written_in_place() -> None:
    """A prompt, then single tokens, in one cache of fixed capacity; each module's caches against ONNX Runtime's."""
    groups, capacity, size = 1, 12, 16
    tables = {"c": _f(capacity, size // 2), "s": _f(capacity, size // 2)}
    cache = [np.zeros((2, groups, capacity, size), np.float32) for _ in range(2)]
    run: Run | None = None
    for past, new in ((0, 5), (5, 1), (6, 1)):
        inputs = {"q": _f(2, new, 3 * size), "k": _f(2, new, size), "v": _f(2, new, size)}
        inputs |= {"pk": cache[0], "pv": cache[1]}
        inputs |= {"l": np.full(2, past + new - 1, np.int32), "t": np.array(past + new, np.int32)} | tables
        model = node_model(
            "GroupQueryAttention", inputs, 3, domain="com.microsoft", num_heads=3, kv_num_heads=groups, do_rotary=1
        )
        for value in (*model.graph.input[:3], *model.graph.output[:1]):
            value.CopyFrom(helper.make_tensor_value_info(value.name, 1, [2, "new", None]))
            value.type.tensor_type.shape.dim[2].dim_value = inputs.get(value.name, inputs["q"]).shape[2]
        for value in model.graph.output[1:]:
            value.CopyFrom(helper.make_tensor_value_info(value.name, 1, list(cache[0].shape)))
        if run is None:
            imported = import_onnx(model)
            assert "update_state" in str(imported.mod)
            assert "extend_cache" not in str(imported.mod)
            run = build(imported)
        expected = run_reference(model, inputs)
        found = list(run(inputs).values())
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
        cache = found[1:]
        for own, reference in zip(cache, expected[1:], strict=True):
            np.testing.assert_allclose(own[:, :, : past + new], reference[:, :, : past + new], rtol=1e-5, atol=1e-6)
    assert run is not None
    with pytest.raises(Exception, match="outside of its capacity"):
        run(inputs | {"l": np.full(2, capacity, np.int32), "t": np.array(capacity + 1, np.int32)})


def _decoder() -> onnx.ModelProto:
    """Attention of four heads over one head of keys, with lengths computed from the mask as in exported decoders."""
    heads, size, width = 4, 16, 6 * 16
    numbers = {"weight": _f(8, width) * 0.5, "cosines": np.cos(_f(32, 8)), "sines": np.sin(_f(32, 8))}
    numbers |= {"one": np.array([1], np.int32), "axis": np.array([1]), "second": np.array(1)}
    node = helper.make_node
    caches = [f"past_key_values.0.{name}" for name in ("key", "value")]
    results = ["present.0.key", "present.0.value"]
    nodes = [
        node("MatMul", ["x", "weight"], ["qkv"]),
        node("ReduceSum", ["mask", "axis"], ["counts"], keepdims=0),
        node("Cast", ["counts"], ["counts32"], to=TensorProto.INT32),
        node("Sub", ["counts32", "one"], ["lengths"]),
        node("Shape", ["mask"], ["shape"]),
        node("Gather", ["shape", "second"], ["columns"], axis=0),
        node("Cast", ["columns"], ["total"], to=TensorProto.INT32),
        node(
            "GroupQueryAttention",
            ["qkv", "", "", *caches, "lengths", "total", "cosines", "sines"],
            ["y", *results],
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=1,
            do_rotary=1,
        ),
    ]
    value = helper.make_tensor_value_info
    rows = dict.fromkeys(caches, "past") | dict.fromkeys(results, "total")
    shapes: dict[str, list[str | int | None]] = {name: ["batch", 1, rows[name], size] for name in rows}
    shapes |= {name: [*shapes[name][:3], "kv_cache_dim"] for name in caches}  # as onnxruntime-genai declares it
    inputs = [value("x", 1, ["batch", "new", 8]), value("mask", TensorProto.INT64, ["batch", "total"])]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [*inputs, *(value(name, 1, shapes[name]) for name in caches)],
        [value("y", 1, ["batch", "new", heads * size]), *(value(name, 1, shapes[name]) for name in results)],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_a_past_that_grows_is_a_buffer_with_a_capacity() -> None:
    """Two prompts of unequal length, then single and several tokens at a time, against ONNX Runtime."""
    model = _decoder()
    module = tensorwright.compile(model, capacity="rows", threads=1, progress=None)
    assert not any("append" in each.kernel for each in module.manifest.kernels)
    session = module.session(capacity=9)
    past = [np.zeros((2, 1, 0, 16), np.float32)] * 2
    lengths = np.zeros(2, int)
    for new, added in ((4, [4, 2]), (1, [1, 1]), (1, [1, 1]), (1, [1, 1])):
        lengths += added
        total = past[0].shape[2] + new
        mask = (np.arange(total) < lengths[:, None]).astype(np.int64)
        inputs = {"x": _f(2, new, 8), "mask": mask}
        expected = run_reference(model, inputs | {"past_key_values.0.key": past[0], "past_key_values.0.value": past[1]})
        past = list(expected[1:])
        found = session.run(inputs)["y"]
        for sample, count in enumerate(added):
            np.testing.assert_allclose(found[sample, :count], expected[0][sample, :count], rtol=1e-4, atol=1e-5)
    assert session.length == 7
    with pytest.raises(InputError, match="the session is full"):
        session.run({"x": _f(2, 3, 8), "mask": np.ones((2, 10), np.int64)})
    with pytest.raises(InputError, match="the mask that were given do not fit"):
        session.run({"x": _f(2, 1, 8), "mask": np.ones((2, 1), np.int64)})


def test_variants_are_refused_by_name() -> None:
    model = node_model("GroupQueryAttention", _inputs(1, 1, 4, [4]), 3, domain="com.microsoft", qk_output=1)
    with pytest.raises(UnsupportedModelError, match=r"GroupQueryAttention.*qk_output=1"):
        import_and_build(model)


@pytest.mark.parametrize(("bits", "zeros"), [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")])
def test_weights_whose_columns_are_in_groups(bits: int, zeros: str) -> None:
    groups = np.random.default_rng(1).integers(0, 2, 64).astype(np.int32)
    inputs = {"a": _f(3, 64), "b": _u8(7, 2, 4 * bits), "s": np.abs(_f(14)) * 0.1}
    packed = _u8(7 * 2 * bits // 8)
    inputs |= {"z": {"none": None, "packed": packed, "float": _f(14) + 8}[zeros]}
    sizes = {"K": 64, "N": 7, "bits": bits, "block_size": 32}
    _check("MatMulNBits", inputs, constants=("b", "s", "z"), **sizes)
    if bits == 4 and zeros != "packed":  # of packed zero points ONNX Runtime's kernel reads others with groups
        _check("MatMulNBits", inputs | {"g": groups}, constants=("b", "s", "z", "g"), **sizes)


@pytest.mark.parametrize("zeros", [False, True])
def test_tables_in_blocks(zeros: bool) -> None:
    inputs = {
        "d": _u8(6, 16),
        "i": np.array([[1, 5], [0, 3]]),
        "s": np.abs(_f(6, 2)),
        "z": _u8(6, 1) if zeros else None,
    }
    attributes = {"bits": 4, "block_size": 16, "quantize_axis": 1, "gather_axis": 0}
    _check("GatherBlockQuantized", inputs, constants=("d", "s", "z"), **attributes)
