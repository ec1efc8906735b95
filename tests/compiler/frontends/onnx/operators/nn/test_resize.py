"""Resize and Upsample."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

from compiler.errors import InvalidModelError
from tests.compiler.frontends.onnx.operators.node_cases import (
    Generator,
    Maker,
    NodeCase,
    chance,
    check,
    check_random,
    integers,
    node_model,
    normal,
    over_seeds,
    pick,
)
from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime
from tests.coverage.tvm_pipeline import import_and_build

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def _resize(random: Generator, mode: str, attributes: dict[str, Any], opset: int, dtype: str = "float32") -> NodeCase:
    """Two spatial axes, by sizes or by scales."""
    sizes = integers(random, 2, 2, 7)
    data = normal(random, pick(random, 1, 2), 2, *sizes, scale=20 if dtype != "float32" else 1).astype(dtype)
    attributes = {"mode": mode, **attributes}
    scales = wanted = None
    if chance(random):
        # With a fractional product, ONNX's reference and ONNX Runtime disagree on aligned corners.
        choices = (
            (0.5, 0.6, 1.5, 2.0, 3.0) if attributes["coordinate_transformation_mode"] != "align_corners" else (2.0,)
        )
        scales = np.array([1, 1, *(pick(random, *choices) for _ in range(2))], np.float32)
    else:
        wanted = np.array([data.shape[0], 2, *integers(random, 2, 2, 12)])
    return NodeCase(
        "Resize",
        [data, np.zeros(0, np.float32), scales if scales is not None else np.zeros(0, np.float32), wanted],
        attributes,
        opset=opset,
        dims={0: {2: "height", 3: "width"}},
        constants=frozenset({3}),
        fixed=frozenset({1, 2}),
        tolerance=1e-4,
    )


def nearest(random: Generator) -> NodeCase:
    attributes = {
        "coordinate_transformation_mode": pick(random, *_COORDINATES),
        "nearest_mode": pick(random, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    }
    return _resize(random, "nearest", attributes, pick(random, 11, 19), pick(random, "float32", "uint8"))


def linear(random: Generator) -> NodeCase:
    return _resize(random, "linear", {"coordinate_transformation_mode": pick(random, *_COORDINATES)}, 13)


def cubic(random: Generator) -> NodeCase:
    attributes = {
        "coordinate_transformation_mode": pick(random, *_COORDINATES),
        "cubic_coeff_a": pick(random, -0.5, -0.75),
        "exclude_outside": pick(random, 0, 1),
    }
    return _resize(random, "cubic", attributes, 13)


def antialias(random: Generator) -> NodeCase:
    attributes = {
        "coordinate_transformation_mode": "half_pixel",
        "antialias": 1,
        "exclude_outside": 1,
    }
    return _resize(random, pick(random, "linear", "cubic"), attributes, 18)


def region(random: Generator) -> NodeCase:
    case = _resize(random, "linear", {"coordinate_transformation_mode": "tf_crop_and_resize"}, 13)
    roi = np.array([0, 0, pick(random, 0, 0.2, -0.1), 0, 1, 1, pick(random, 1, 0.7, 1.2), 0.6], np.float32)
    wanted = np.array([case.inputs[0].shape[0], 2, *integers(random, 2, 2, 9)])  # type: ignore[union-attr]
    case.attributes["extrapolation_value"] = 7.0
    case.inputs = [case.inputs[0], roi, np.zeros(0, np.float32), wanted]
    return case


def upsample(random: Generator) -> NodeCase:
    data = normal(random, 1, 2, *integers(random, 2, 1, 6))
    scales = [1.0, 1.0, pick(random, 1.0, 1.5, 2.0), pick(random, 1.0, 2.0, 2.5)]
    dims = {0: {2: "height", 3: "width"}}
    mode = pick(random, "nearest", "linear")
    if chance(random):
        return NodeCase("Upsample", [data], {"mode": mode, "scales": scales}, opset=7, dims=dims)
    inputs = [data, np.array(scales, np.float32)]
    return NodeCase(pick(random, "Upsample"), inputs, {"mode": mode}, opset=9, dims=dims, fixed=frozenset({1}))


@over_seeds(6, nearest, linear)
def test_random_resizes(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@over_seeds(4, cubic, antialias, region, upsample)
def test_random_rarer_resizes(maker: Maker, seed: int) -> None:
    check_random(maker, seed)


@pytest.mark.parametrize(("policy", "size"), [("not_larger", (6, 3)), ("not_smaller", (8, 4))])
def test_the_aspect_ratio_is_kept(policy: str, size: tuple[int, int]) -> None:
    data = normal(np.random.default_rng(0), 1, 1, 4, 2)
    attributes = {"axes": [2, 3], "keep_aspect_ratio_policy": policy}
    inputs = [data, None, None, np.array([6, 4])]
    case = NodeCase("Resize", inputs, attributes, opset=19, fixed=frozenset({3}))
    model, feeds = node_model(case, symbolic=False, constant=False)
    (found,) = import_and_build(model)(feeds).values()
    assert found.shape == (1, 1, *size)


def test_integers_drop_fractions_as_onnx_runtime_does() -> None:
    data = np.array([[[[0, 3], [10, 100]]]], np.uint8)
    attributes = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    inputs = [data, None, None, np.array([1, 1, 3, 4])]
    check(NodeCase("Resize", inputs, attributes, opset=13, fixed=frozenset({3})))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_a_region_that_is_computed(mode: str) -> None:
    """Regions partly outside the image, flipped, and of one pixel, which is sampled at the region's middle."""
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 9.0'
    text = f"""g (float[n,c,h,w] x, float[4] box, int64[4] sizes) => (float[n,c,a,b] y) <float[2] zeros = {{0.0, 0.0}},
      float[2] ones = {{1.0, 1.0}}> {{
      start, stop = Split<axis = 0, num_outputs = 2>(box)
      region = Concat<axis = 0>(zeros, start, ones, stop)
      y = Resize<{attributes}>(x, region, , sizes) }}"""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    data = normal(np.random.default_rng(0), 2, 3, 6, 5)
    boxes = np.array([[0.1, 0.2, 0.8, 0.9], [-0.3, 0.9, 0.7, 0.1], [0.2, 0.5, 1.3, 0.6]], np.float32)
    sizes = [np.array([2, 3, *size]) for size in ((4, 7), (3, 1), (9, 2))]
    feeds = [{"x": data, "box": box, "sizes": size} for box, size in zip(boxes, sizes, strict=True)]
    assert_equal_to_onnxruntime(model, *feeds)


def test_pixels_of_an_unknown_number_are_repeated() -> None:
    """Some of the modes repeat every pixel equally often, others do not."""
    ways = [("half_pixel", "round_prefer_floor"), ("asymmetric", "floor"), ("asymmetric", "ceil")]
    ways.append(("align_corners", "round_prefer_floor"))
    nodes = "".join(
        f'y{i} = Resize<coordinate_transformation_mode = "{mode}", nearest_mode = "{rounding}">(x, , scales)\n'
        for i, (mode, rounding) in enumerate(ways)
    )
    results = ", ".join(f"float[n,c,p{i},q{i}] y{i}" for i in range(len(ways)))
    text = f"g (float[n,c,h,w] x) => ({results}) <float[4] scales = {{1.0, 1.0, 2.0, 3.0}}> {{ {nodes} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    random = np.random.default_rng(0)
    assert_equal_to_onnxruntime(model, *({"x": normal(random, 1, 2, *size)} for size in ((1, 2), (3, 5), (9, 40))))


def test_an_unknown_mode_is_named() -> None:
    inputs = [np.zeros((1, 1, 4, 4), np.float32), None, np.ones(4, np.float32)]
    case = NodeCase("Resize", inputs, {"mode": "area"}, opset=18, fixed=frozenset({2}))
    with pytest.raises(InvalidModelError, match="mode must be one of"):
        import_and_build(node_model(case, symbolic=False, constant=False)[0])
