"""Pictures without Python: the runner and the C API read the same pixels as Pillow, and give `predict`'s results."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
import tensorwright
from compiler.artifact.processing import takes_images
from compiler.device.programs import SOURCES, device_programs
from compiler.runtime.prediction.results import _rgb
from compiler.support.media_files import pixels_of
from tests.compiler.device.c_library import CallError, read_image
from tests.compiler.frontends.processing.nets import NAMES, SIDE, centers, net_with
from tests.fuzz.media import pictures

pillow = pytest.importorskip("PIL.Image")
Array = np.ndarray
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
FORMATS = ("PNG", "JPEG", "GIF", "BMP")


def smooth(height: int, width: int) -> Any:
    """A picture with slowly changing colors, suitable for JPEG."""
    y, x = np.mgrid[:height, :width] / 25
    waves = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(3 * x)], axis=2)
    return pillow.fromarray(((waves + 1) * 127.5).astype(np.uint8))


def test_pixels_are_those_of_pillow(tmp_path: Path) -> None:
    path, read = tmp_path / "picture", 0
    for content in pictures():
        path.write_bytes(content)
        if pillow.open(io.BytesIO(content)).format in FORMATS:
            np.testing.assert_array_equal(read_image(path), pixels_of(content))
            read += 1
        else:
            with pytest.raises(CallError, match="WebP"):
                read_image(path)
    assert read > 15


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_of_jpeg(subsampling: int, progressive: bool, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    for size in ((1, 1), (7, 9), (33, 17), (120, 203)):
        smooth(*size).save(path, quality=85, subsampling=subsampling, progressive=progressive)
        np.testing.assert_array_equal(read_image(path), pixels_of(path))


@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned(orientation: int, tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        smooth(13, 21).save(tmp_path / "picture", kind, exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "picture"), pixels_of(tmp_path / "picture"))


def png_head(width: int, height: int) -> bytes:
    """A PNG file that declares a size, but has no pixels."""
    content = b"IHDR" + struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 100) + b"IDAT"


def test_damaged_and_large_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    content = io.BytesIO()
    smooth(40, 60).save(content, "JPEG")
    for damaged, message in (
        (content.getvalue()[:400], "truncated"),
        (png_head(8193, 8192), "8193 x 8192 pixels, and at most 67108864 are read"),
        (png_head(0x7FFFFFFF, 0x7FFFFFFF), "cannot be read"),
        (png_head(8192, 8192), "truncated"),
        (b"", "unknown format"),
        (b"#!/bin/sh", "unknown format"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CallError, match=message):
            read_image(path)
    with pytest.raises(CallError, match="No such file"):
        read_image(tmp_path / "missing.png")


def module_of(task: str) -> tensorwright.Module:
    """A module of a net with known outputs."""
    random = np.random.default_rng(3)
    boxes, scores = centers()
    outputs: dict[str, dict[str, Array]] = {
        "detect": {"output0": np.concatenate([boxes, scores], 1).T[None]},
        "masks": {
            "output0": np.concatenate([boxes, scores, random.standard_normal((len(boxes), 4))], 1).T[None],
            "output1": random.standard_normal((1, 4, 16, 16)),
        },
        "classify": {"logits": random.standard_normal((1, 3))},
        "segment": {"logits": random.standard_normal((1, 3, SIDE, SIDE))},
        "read": {"steps": random.standard_normal((1, 12, 3))},
    }
    net = net_with({name: each.astype(np.float32) for name, each in outputs[task].items()})
    processing = tensorwright.Processing(task="detect" if task == "masks" else task, names=NAMES, score=0.8)  # type: ignore[arg-type]
    return tensorwright.compile(net, processing=processing, threads=1)


@pytest.mark.parametrize("task", ["detect", "masks", "classify", "segment", "read"])
def test_the_runner_finds_what_predict_finds(task: str, tmp_path: Path) -> None:
    module = module_of(task)
    assert takes_images(module.artifact)
    module.export(tmp_path / "net.twm")
    pillow.fromarray(IMAGE).save(tmp_path / "street.png")
    done = run(tmp_path, "street.png", "--json", "--outputs", "outputs.safetensors")
    (found,) = json.loads(done.stdout)["predictions"]
    expected = module.predict(tmp_path / "street.png")
    document = {"input": "street.png", **expected.to_dict()}
    document.pop("mask", None)
    for each in document.get("detections", ()):
        each.pop("mask", None)
    assert (found.pop("picture", None) is not None) == hasattr(expected, "picture")
    assert_alike(found, document)
    if isinstance(expected, tensorwright.Segmentation):
        np.testing.assert_array_equal(pixels_of(tmp_path / "street-mask.png"), np.asarray(expected.picture()))
    if isinstance(expected, tensorwright.Detections):
        drawn = pixels_of(tmp_path / "street-boxes.png")
        assert len(document["detections"]) > 1
        np.testing.assert_array_equal(drawn, boxes_of(expected))
    assert run(tmp_path, "street.png").stdout.count("\n") >= len(
        document.get("detections") or document.get("classes") or "1"
    )


def boxes_of(found: tensorwright.Detections) -> Array:
    """Draw the picture with Pillow, with names and scores in the runner's font."""
    font = (SOURCES / "font.h").read_text()
    columns = np.array([int(each, 16) for each in re.findall(r"\\x(..)", font)], np.uint8).reshape(95, 5)
    dots = np.pad(np.unpackbits(columns[..., None], axis=2, bitorder="little"), ((0, 0), (0, 1), (0, 0)))
    picture = pillow.fromarray(found._masked())
    draw = pytest.importorskip("PIL.ImageDraw").Draw(picture)
    for number, each in reversed(list(zip(found.classes, found, strict=True))):
        color = tuple(map(int, _rgb(int(number))))
        draw.rectangle(each.box, outline=color, width=2)
        text = np.concatenate([dots[ord(letter) - 32] for letter in f"{each.name} {each.score:.2f}"]).T
        left, top = int(each.box[0]), max(0, int(each.box[1]) - 12)
        draw.rectangle((left, top, left + text.shape[1] + 3, top + 11), fill=color)
        draw.bitmap((left + 2, top + 2), pillow.fromarray(text * 255), fill="white")
    return np.asarray(picture)


def assert_alike(found: Any, expected: Any) -> None:
    """Assert equality up to the rounding of printed numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected)


def run(folder: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The runner with the module in a folder."""
    program = device_programs(targets.get("host", cores=1)) / "tensorwright-run"
    done = subprocess.run([program, "net.twm", *options], capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == code, done.stderr
    return done


def test_what_cannot_be_run_is_said(tmp_path: Path) -> None:
    tensorwright.compile(net_with({"y": np.zeros((1, 3), np.float32)}), threads=1).export(tmp_path / "net.twm")
    pillow.fromarray(IMAGE).save(tmp_path / "street.png")
    assert "compiled without processing" in run(tmp_path, "street.png", code=1).stderr
    assert "one file: of one picture" in run(tmp_path, "a.png", "b.png", "--picture", "c.png", code=1).stderr
    assert "leave out --inputs" in run(tmp_path, "a.png", "--inputs", "b.safetensors", code=1).stderr
