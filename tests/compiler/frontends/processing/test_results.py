"""Boxes and classes from nets with known outputs, and postprocessing found in metadata."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
import torch

import tensorwright
from compiler.runtime.prediction import Classes, Detections
from compiler.support.processing import Processing
from tensorwright import errors
from tests.compiler.frontends.processing.nets import NAMES, SIDE, centers, net_with

Array = np.ndarray
Found = TypeVar("Found", Classes, Detections)
IMAGE = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)


def _suppressed(boxes: Array, scores: Array, least: float, max_overlap: float) -> tuple[Array, Array, Array]:
    """Corners in image pixels, scores and classes of the boxes kept by greedy suppression per class."""
    best, label = scores.max(1), scores.argmax(1)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1).astype(np.float64)
    kept: list[int] = []
    for at in np.argsort(-best, kind="stable"):
        if best[at] > least and all(
            label[at] != label[other] or _overlap(corners[at], corners[other]) <= max_overlap for other in kept
        ):
            kept.append(int(at))
    return _on_image(corners[kept]), best[kept], label[kept]


def _overlap(first: Array, second: Array) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    common = np.prod(np.maximum(high - low, 0))
    areas = sum(np.prod(each[2:] - each[:2]) for each in (first, second))
    return float(common / (areas - common))


def _on_image(corners: Array) -> Array:
    """From the letterbox of 64 x 64 to the image of 100 x 200: 32 rows between 16 above and below."""
    return np.clip((corners - [0, 16, 0, 16]) / (SIDE / 200), 0, [200, 100, 200, 100])


def _check(found: dict[str, Array], expected: tuple[Array, Array, Array]) -> None:
    assert len(expected[1]) > 3
    np.testing.assert_array_equal(found["classes"], expected[2])
    np.testing.assert_allclose(found["scores"], expected[1], atol=1e-6)
    # Boxes of other classes are moved far away for the comparison, not for the result.
    np.testing.assert_allclose(found["boxes"], expected[0], atol=1e-3)


def _compiled(net: onnx.ModelProto, **options: Any) -> tensorwright.Module:
    return tensorwright.compile(net, processing=Processing(**options), threads=1)


def _predicted(module: tensorwright.Module, kind: type[Found]) -> Found:
    found = module.predict(IMAGE)
    assert isinstance(found, kind)
    return found


def test_boxes_of_yolo_are_suppressed_by_class_and_placed_on_the_image() -> None:
    boxes, scores = centers()
    raw = np.concatenate([boxes, scores], 1).T[None]
    module = _compiled(net_with({"output0": raw}), task="detect", score=0.5, overlap=0.45)
    expected = _suppressed(boxes, scores, 0.5, 0.45)
    assert len(expected[1]) < (scores.max(1) > 0.5).sum()
    _check(module.run([IMAGE]), expected)


def test_objectness_multiplies_scores() -> None:
    boxes, scores = centers()
    objectness = np.random.default_rng(2).uniform(0.5, 1, (len(boxes), 1)).astype(np.float32)
    raw = np.concatenate([boxes, objectness, scores], 1)[None]
    module = _compiled(net_with({"output": raw}), task="detect", boxes="yolo-objectness", score=0.4, overlap=0.5)
    _check(module.run([IMAGE]), _suppressed(boxes, scores * objectness, 0.4, 0.5))


def test_end_to_end_boxes_are_kept_by_score() -> None:
    boxes, scores = centers()
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    best, label = scores.max(1), scores.argmax(1)
    raw = np.concatenate([corners, best[:, None], label[:, None].astype(np.float32)], 1)[None]
    module = _compiled(net_with({"output0": raw}), task="detect", score=0.7)
    order = [at for at in np.argsort(-best, kind="stable") if best[at] > 0.7]
    _check(module.run([IMAGE]), (_on_image(corners[order].astype(np.float64)), best[order], label[order]))


def _masks(boxes: Array, coefficients: Array, prototypes: Array) -> Array:
    """Masks of boxes (corners in the frame) in the frame's size, as ultralytics computes them; in float64."""
    products = torch.from_numpy(np.einsum("nk,kyx->nyx", coefficients.astype(np.float64), prototypes))
    large = torch.nn.functional.interpolate(products[None], (SIDE, SIDE), mode="bilinear")[0].numpy()
    at = np.arange(SIDE)
    left, top, right, bottom = (each[:, None] for each in boxes.T)
    rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
    return (large > 0) & rows[:, :, None] & columns[:, None, :]


@pytest.mark.parametrize("form", ["yolo", "yolo-objectness", "end-to-end"])
def test_masks_of_boxes_are_those_of_ultralytics(form: str) -> None:
    boxes, scores = centers()
    generator = np.random.default_rng(4)
    coefficients = generator.normal(size=(len(boxes), 8)).astype(np.float32)
    prototypes = generator.normal(size=(8, SIDE // 4, SIDE // 4)).astype(np.float32)
    coefficients[2] = 0  # has no pixel, and is dropped
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    best, label = scores.max(1, keepdims=True), scores.argmax(1)
    columns = {
        "yolo": [boxes, scores],
        "yolo-objectness": [boxes, np.ones_like(best), scores],
        "end-to-end": [corners, best, label[:, None].astype(np.float32)],
    }[form]
    raw = np.concatenate([*columns, coefficients], 1)[None]
    net = net_with({"output0": raw.transpose(0, 2, 1) if form == "yolo" else raw, "output1": prototypes[None]})
    module = _compiled(net, task="detect", names=NAMES, score=0.6, overlap=1.0)
    found = _predicted(module, Detections)
    kept = [at for at in np.argsort(-best[:, 0], kind="stable") if best[at, 0] > 0.6 and at != 2]
    assert best[2, 0] > 0.6
    assert len(kept) > 10
    _check(module.run([IMAGE]), (_on_image(corners[kept].astype(np.float64)), best[kept, 0], label[kept]))
    assert found.masks is not None
    masks = _masks(corners[kept], coefficients[kept], prototypes)
    np.testing.assert_array_equal(found.masks, masks[:, 16:48])  # the image lies between margins of 16 rows
    assert found.mask(0).shape == IMAGE.shape[:2]


@pytest.mark.parametrize("form", ["detr", "rt-detr"])
def test_boxes_of_transformers_are_relative(form: Any) -> None:
    boxes, _ = centers()
    logits = np.random.default_rng(3).normal(0, 2, (len(boxes), 4)).astype(np.float32)
    net = net_with({"logits": logits[None], "pred_boxes": (boxes / SIDE)[None]})
    module = _compiled(net, task="detect", boxes=form, resize="stretch", antialias=True, score=0.5)
    values = logits.astype(np.float64)
    if form == "detr":
        shares = np.exp(values) / np.exp(values).sum(1, keepdims=True)
        best, label, query = shares[:, :3].max(1), shares[:, :3].argmax(1), np.arange(len(boxes))
    else:
        flat = (1 / (1 + np.exp(-values))).ravel()
        best, label, query = flat, np.arange(flat.size) % 4, np.arange(flat.size) // 4
    order = [at for at in np.argsort(-best, kind="stable") if best[at] > 0.5]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)[query[order]]
    placed = np.clip(corners * (np.array([200, 100, 200, 100]) / SIDE), 0, [200, 100, 200, 100])
    _check(module.run([IMAGE]), (placed, best[order], label[order]))


def test_classes_have_names() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    module = _compiled(net_with({"logits": logits}, channels_first=False), task="classify", top=2, names=NAMES)
    found = _predicted(module, Classes)
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert [each.name for each in found] == ["dog", "bird"]
    np.testing.assert_allclose([each.score for each in found], shares[[1, 2]], rtol=1e-6)


def test_metadata_of_ultralytics_are_found_and_overridden(tmp_path: Path) -> None:
    boxes, scores = centers()
    net = net_with({"output0": np.concatenate([boxes, scores], 1).T[None]})
    names = dict(enumerate(NAMES))
    for key, value in {"task": "detect", "names": str(names), "imgsz": f"[{SIDE}, {SIDE}]", "stride": "32"}.items():
        net.metadata_props.add(key=key, value=value)
    onnx.save(net, tmp_path / "net.onnx")
    module = tensorwright.compile(tmp_path / "net.onnx", processing="auto", threads=1)
    _check(module.run([IMAGE]), _suppressed(boxes, scores, 0.25, 0.7))
    surer = tensorwright.compile(net, processing=Processing(score=0.9), threads=1)
    detections = _predicted(surer, Detections)
    assert {each.name for each in detections} <= set(NAMES)
    assert 0 < len(detections) < len(_predicted(module, Detections))
    net.metadata_props[0].value = "pose"
    with pytest.raises(errors.OptionError, match="'pose'"):
        tensorwright.compile(net, processing="auto")


def test_metadata_of_transformers_are_found(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_center_crop": True,
                "size": {"shortest_edge": 70},
                "crop_size": {"height": SIDE, "width": SIDE},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "resample": 3,
            }
        )
    )
    labels = {str(number): name for number, name in enumerate(NAMES)}
    config = {"architectures": ["ViTForImageClassification"], "id2label": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    onnx.save(net_with({"logits": np.array([[1.0, 3.0, 2.0]], np.float32)}), tmp_path / "model.onnx")
    module = tensorwright.compile(tmp_path / "model.onnx", processing="auto", threads=1)
    assert [each.name for each in _predicted(module, Classes)] == ["dog", "bird", "cat"]


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"rate": 1 << 40}, {"context": -1}, {"mean": (math.nan,)}, {"std": (math.inf,)}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError, match=next(iter(options))):
        Processing(task="speech", **options)


def test_mistakes_are_named(tmp_path: Path) -> None:
    net = net_with({"output0": np.zeros((1, 7), np.float32)})
    with pytest.raises(errors.OptionError, match="no metadata"):
        tensorwright.compile(net, processing="auto")
    with pytest.raises(errors.OptionError, match="boxes cannot be determined"):
        _compiled(net, task="detect")
    with pytest.raises(errors.OptionError, match="channels"):
        _compiled(net, task="classify", colors="gray")
    with pytest.raises(errors.OptionError, match="use one of"):
        Processing(task="draw")  # type: ignore[arg-type]
    module = _compiled(net, task="classify")
    with pytest.raises(errors.InputError):
        module.run([np.zeros((0, 5, 3), np.uint8)])
    with pytest.raises(errors.InputError, match="1048576 x 1048576 pixels"):
        module.predict(np.broadcast_to(IMAGE[:1, :1], (1 << 20, 1 << 20, 3)))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(errors.InputError, match="cannot be read"):
        module.predict(tmp_path / "broken.png")
    with pytest.raises(errors.OptionError, match="without processing"):
        tensorwright.compile(net, threads=1).predict(IMAGE)
