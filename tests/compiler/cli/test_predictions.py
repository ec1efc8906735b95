"""`compile` with options of processing, and `run` on pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.cli.processing_options import parse_processing
from compiler.errors import OptionError
from compiler.support.processing import Processing
from tests.compiler.cli.running import Run
from tests.compiler.frontends.processing.nets import NAMES, centers, net_with

pillow = pytest.importorskip("PIL.Image")


def test_options_are_fields_of_processing(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    texts = {
        "task": "classify",
        "size": "224x192",
        "antialias": "true",
        "mean": "0.5,0.4,0.3",
        "scale": "0.5",
        "names": str(tmp_path / "names.txt"),
    }
    expected = Processing(
        task="classify", size=(224, 192), antialias=True, mean=(0.5, 0.4, 0.3), scale=0.5, names=("cat", "dog")
    )
    assert parse_processing(texts) == expected
    assert parse_processing({"processing": True}) == "auto"
    assert parse_processing({"processing": False}) is None
    with pytest.raises(OptionError, match="--image-size"):
        parse_processing({"size": "large"})


def test_a_picture_is_written_with_its_boxes(
    tensorwright: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, scores = centers()
    onnx.save(net_with({"output0": np.concatenate([boxes, scores], 1).T[None]}), tmp_path / "net.onnx")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    pillow.fromarray(image).save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    options = ("--task", "detect", "--score", "0.9", "--names", "names.txt", "--threads", "1")
    assert tensorwright("compile", "net.onnx", *options, "-o", "net.twm").code == 0
    found = tensorwright("run", "net.twm", "street.png", "--json").json
    assert {each["name"] for each in found["detections"]} <= set(NAMES)
    assert np.any(np.asarray(pillow.open(tmp_path / found["picture"])) != image)
    shown = tensorwright("run", "net.twm", "street.png", "--output", "boxes.jpg")
    assert (tmp_path / "boxes.jpg").exists()
    assert shown.out.count("\n") > len(found["detections"])
    refused = tensorwright("run", "net.twm", "missing.png")
    assert (refused.code, "no such file" in refused.err) == (2, True)
    (tmp_path / "bad.png").write_text("text")
    for given, message in (
        ("bad.png", "bad.png cannot be read: unknown format"),
        ("--text=hi", "--text is for modules"),
    ):
        assert message in tensorwright("run", "net.twm", given).err
    assert tensorwright("run", "net.twm", "street.png", "--output", "boxes.npz").code == 2
