"""Frames of images equal those of Pillow and torchvision, and ultralytics' letterbox."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.support.processing import Filter, Processing
from tests.compiler.frontends.processing.frames import frame_module

pillow = pytest.importorskip("PIL.Image")
Array = np.ndarray
# Pillow 13 sums columns first where that is cheaper, and rounds to bytes between: one level then.
ROWS_FIRST = ((270, 480), (100, 77), (48, 40), (1, 1), (3, 250), (31, 32))
SIZES = (*ROWS_FIRST, (64, 43), (350, 166))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _images() -> list[Array]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_stretched_images_are_those_of_pillow(name: Filter) -> None:
    module = frame_module(Processing(task="classify", resize="stretch", filter=name, scale=1.0), (48, 40))
    kind = {"bilinear": pillow.Resampling.BILINEAR, "bicubic": pillow.Resampling.BICUBIC}[name]
    for image in _images():
        if name == "bicubic" and image.shape[:2] not in ROWS_FIRST:
            continue  # its sums leave the range of bytes between rows and columns, and are cut off
        expected = np.asarray(pillow.fromarray(image).resize((40, 48), kind))
        difference = np.abs(np.asarray(module(image))[0].transpose(1, 2, 0) - expected).max()
        assert difference <= (0 if image.shape[:2] in ROWS_FIRST else 1)


@pytest.mark.parametrize("shortest", [51, 40])
def test_cropped_images_are_those_of_torchvision(shortest: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    size = (48, 42)
    steps = [transforms.Resize(shortest), transforms.CenterCrop(size), transforms.ToTensor()]
    theirs = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    module = frame_module(Processing(task="classify", shortest=shortest, mean=MEAN, std=STD), size)
    level = 1 / 255 / min(STD)
    for image in _images():
        if min(image.shape[:2]) < 2 < max(image.shape[:2]):
            continue  # Pillow makes an image thousands of pixels wide of it
        expected = theirs(pillow.fromarray(image)).numpy()
        assert np.abs(np.asarray(module(image))[0] - expected).max() <= level + 1e-5


def _letterboxed(image: Array, size: int) -> Array:
    """Linear interpolation without antialiasing in float64, positioned as in ultralytics."""
    height, width = image.shape[:2]
    gain = min(size / height, size / width)
    shape = (max(round(height * gain), 1), max(round(width * gain), 1))
    values = image.astype(np.float64)
    for axis, (before, after) in enumerate(zip((height, width), shape, strict=True)):
        places = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        high = np.minimum(low + 1, before - 1)
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    frame = np.full((size, size, 3), 114.0)
    top, left = ((size - each) // 2 for each in shape)
    frame[top : top + shape[0], left : left + shape[1]] = values
    return frame


def test_letterboxes_are_those_of_linear_interpolation() -> None:
    module = frame_module(Processing(task="detect", scale=1.0), (64, 64))
    for image in _images():
        found = np.asarray(module(image))[0].transpose(1, 2, 0)
        # Rows and columns are rounded to bytes one after the other: half a level each.
        assert np.abs(found - _letterboxed(image, 64)).max() <= 1.0 + 1e-4


def test_colors_and_layout() -> None:
    image = _images()[1]
    plain = np.asarray(frame_module(Processing(task="classify", resize="stretch", scale=1.0), (8, 8))(image))
    options = Processing(task="classify", resize="stretch", scale=1.0, colors="bgr", mean=(1, 2, 3), std=(2, 4, 8))
    turned = np.asarray(frame_module(options, (8, 8), "NHWC")(image))
    expected = (plain - np.array((1, 2, 3)).reshape(1, 3, 1, 1)) / np.array((2, 4, 8)).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(turned, expected.transpose(0, 2, 3, 1)[..., ::-1], rtol=1e-6, atol=1e-5)
    gray = frame_module(Processing(task="classify", resize="stretch", scale=1.0, colors="gray"), (8, 8))
    expected = np.asarray(pillow.fromarray(image).convert("L").resize((8, 8), pillow.Resampling.BILINEAR))
    assert np.abs(np.asarray(gray(image))[0, 0] - expected).max() <= 1
