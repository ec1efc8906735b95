"""Masks in the size of an image, and the text of a line, from nets with known outputs."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import onnx
import pytest

import tensorwright
from compiler.driver.processing_metadata import found_processing
from compiler.runtime.prediction import Segmentation, Text
from compiler.support.processing import Processing, Resize
from tensorwright import errors
from tests.compiler.frontends.processing.nets import NAMES, SIDE, net_with

pillow = pytest.importorskip("PIL.Image")
Array = np.ndarray
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


def _interpolated(values: Array, resize: Resize) -> Array:
    """(classes, rows, columns) on the image, float64, by linear interpolation without corners aligned."""
    height, width = IMAGE.shape[:2]
    gain = min(SIDE / height, SIDE / width)
    for axis, image in ((1, height), (2, width)):
        resized = SIDE if resize == "stretch" else round(image * gain)
        margin = (SIDE - resized) // 2 if resize == "letterbox" else 0
        count = values.shape[axis]
        places = ((np.arange(image) + 0.5) * resized / image + margin) * count / SIDE - 0.5
        places = np.clip(places, 0, count - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape((-1, 1) if axis == 1 else (1, -1))
        values = (
            np.take(values, low, axis) * (1 - share) + np.take(values, np.minimum(low + 1, count - 1), axis) * share
        )
    return values


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "fit"])
def test_masks_are_the_largest_of_interpolated_values(resize: Resize) -> None:
    values = np.random.default_rng(1).standard_normal((1, 3, 16, 20)).astype(np.float32)
    net = net_with({"out": values})
    found = tensorwright.compile(
        net, processing=Processing(task="segment", resize=resize, names=NAMES), threads=1
    ).predict(IMAGE)
    assert isinstance(found, Segmentation)
    expected = _interpolated(values[0].astype(np.float64), resize)
    second, best = np.sort(expected, axis=0)[-2:]
    is_clear = best - second > 1e-5
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(found.mask[is_clear], expected.argmax(0)[is_clear])
    assert sum(each.share for each in found) == pytest.approx(1)
    assert {each.name for each in found} == set(NAMES)


def test_one_class_has_scores_and_a_cutout() -> None:
    values = np.random.default_rng(2).standard_normal((1, 1, 32, 32)).astype(np.float32)
    processing = Processing(task="segment", activation="sigmoid", score=0.4)
    found = tensorwright.compile(net_with({"out": values}), processing=processing, threads=1).predict(IMAGE)
    assert isinstance(found, Segmentation)
    assert found.scores is not None
    expected = _interpolated(1 / (1 + np.exp(-values[0].astype(np.float64))), "stretch")[0]
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    np.testing.assert_array_equal(found.mask, found.scores >= np.float32(0.4))
    opaque = np.asarray(found.cutout())[:, :, 3]
    assert np.abs(opaque / 255 - expected).max() < 0.003
    sent = json.loads(json.dumps(found.to_dict()))
    np.testing.assert_array_equal(np.asarray(pillow.open(io.BytesIO(base64.b64decode(sent["mask"])))), found.mask)
    changed = np.any(np.asarray(found.picture()) != IMAGE, axis=2)
    assert not changed[found.mask == 0].any()


@pytest.mark.parametrize(
    ("shape", "resize", "message"),
    [
        ((1, 3, 8), None, "mask of each class"),
        ((1, 300, 8, 8), None, "256 classes"),
        ((1, 2, 8, 8), "crop", "cropped parts have no mask"),
    ],
)
def test_what_has_no_mask_is_one_error(shape: tuple[int, ...], resize: Resize | None, message: str) -> None:
    net = net_with({"out": np.zeros(shape, np.float32)})
    with pytest.raises(errors.OptionError, match=message):
        tensorwright.compile(net, processing=Processing(task="segment", resize=resize), threads=1)


def _line(classes: list[int], count: int) -> onnx.ModelProto:
    """A net that returns these classes, one for each step."""
    logits = np.random.default_rng(3).uniform(0, 1, (1, len(classes), count)).astype(np.float32)
    logits[0, np.arange(len(classes)), classes] += 2
    return net_with({"out": logits})


def test_lines_are_read_without_blanks_and_repetitions() -> None:
    net = _line([0, 1, 1, 0, 1, 2, 2, 3, 0, 3], 4)
    names = ("<blank>", "a", "b", "c")
    found = tensorwright.compile(net, processing=Processing(task="read", names=names), threads=1).predict(IMAGE)
    assert isinstance(found, Text)
    assert str(found) == "aabcc"
    logits = np.asarray(onnx.numpy_helper.to_array(net.graph.initializer[0]), np.float64)[0]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.scores, shares[[1, 4, 5, 7, 9]].max(1), atol=1e-6)
    other = tensorwright.compile(net, processing=Processing(task="read", blank=3), threads=1).predict(IMAGE)
    assert other.to_dict()["text"] == "010120"
    with pytest.raises(errors.OptionError, match="2 names for 4 classes"):
        tensorwright.compile(net, processing=Processing(task="read", names=("a", "b")), threads=1)


def test_a_list_is_predicted_one_by_one() -> None:
    module = tensorwright.compile(_line([0, 1, 2], 3), processing=Processing(task="read"), threads=1)
    assert [str(each) for each in module.predict([IMAGE, IMAGE[:20]])] == ["12", "12"]


def test_paddle_s_metadata_are_found() -> None:
    net = _line([1, 2, 3, 4], 5)
    net.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 48
    net.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.helper.set_model_props(net, {"character": "a\nb\nc"})
    found = found_processing(net)
    assert found is not None
    assert (found.task, found.size, found.colors, found.names) == ("read", (48, 320), "bgr", ("", "a", "b", "c", " "))
