"""Strings that are constant at compile time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.errors import InvalidModelError


def matcher(pattern: str, texts: list[str]) -> onnx.ModelProto:
    node = helper.make_node("RegexFullMatch", ["s"], ["y"], pattern=pattern)
    words = numpy_helper.from_array(np.array(texts, object), "s")
    graph = helper.make_graph(
        [node], "g", [], [helper.make_tensor_value_info("y", TensorProto.BOOL, [len(texts)])], [words]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("(a+)+$", ["a" * 5000, "a" * 5000 + "!"]),
        (r"(\W|^)[\w.\-]{0,25}@(yahoo|gmail)\.com(\W|$)", ["account@gmail.com", "account@hotmail.com"]),
        ("ä.c", ["äbc", "abc"]),
    ],
)
def test_expressions_match_whole_texts_in_linear_time(pattern: str, texts: list[str]) -> None:
    assert compiler.compile(matcher(pattern, texts), threads=1).run({})["y"].tolist() == [True, False]


@pytest.mark.parametrize("pattern", ["(((", "(.*)\\1", "((a{1000}){1000})"])
def test_expressions_that_re2_does_not_know_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidModelError, match=r"RegexFullMatch.*RE2"):
        compiler.compile(matcher(pattern, ["a"]))


def test_no_text_gives_no_result() -> None:
    assert compiler.compile(matcher("a", []), threads=1).run({})["y"].shape == (0,)
