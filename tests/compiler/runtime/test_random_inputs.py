"""Random inputs are realistic: ids over the whole vocabulary, masks of ones, small counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser
import pytest

import tensorwright
from compiler.profiling.workload import RANDOM, complete_inputs, made_up_note
from compiler.runtime.random_inputs import random_inputs


def spec(name: str, shape: tuple[int | str, ...], dtype: str = "int64") -> Any:
    return SimpleNamespace(name=name, shape=shape, dtype=dtype)


def index(name: str, size: str, least: str | None = None, **symbols: str) -> Any:
    return SimpleNamespace(input=name, size=size, least=least, symbols=symbols)


def test_ids_spread_over_the_vocabulary() -> None:
    made = random_inputs([spec("ids", ("batch", 64))], indices=[index("ids", "30522")], sizes={"batch": 4})["ids"]
    assert made.shape == (4, 64)
    assert made.min() >= 0
    assert 15000 < made.max() < 30522
    assert len(np.unique(made)) > 200


def test_the_smallest_of_several_ranges_holds_and_may_depend_on_sizes() -> None:
    ranges = [index("i", "100"), index("i", "n + 1", n="seq")]
    made = random_inputs([spec("i", (500,)), spec("x", ("seq",), "float32")], indices=ranges, sizes={"seq": 6})["i"]
    assert set(np.unique(made)) == set(range(7))


def test_lengths_and_counts_stay_small() -> None:
    made = random_inputs([spec("n", (100,))], indices=[index("n", "1000000000", least="1")])["n"]
    assert set(np.unique(made)) == {1, 2}


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_masks_are_ones(dtype: str) -> None:
    assert random_inputs([spec("attention_mask", (2, 9), dtype)])["attention_mask"].all()
    assert not random_inputs([spec("other", (2, 9), dtype)])["other"].all()


def test_random_is_random_where_an_example_is_stored() -> None:
    graph = "(int64[n] ids) => (float[n,2] y) { y = Gather(w, ids) }"
    text = f'<ir_version: 8, opset_import: ["" : 17]> agraph {graph}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((5000, 2), np.float32), "w"))
    module = tensorwright.compile(model, threads=1, reference_inputs={"ids": np.zeros(8, np.int64)})
    assert not complete_inputs(module, None)["ids"].any()
    made = complete_inputs(module, {"ids": RANDOM}, {"n": 8})["ids"]
    assert made.max() > 1000
    assert made_up_note(module, {"ids": RANDOM}, None) == "random values for ids"
