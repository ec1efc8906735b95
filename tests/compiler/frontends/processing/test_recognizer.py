"""A recognizer with trained weights reads the same text of a line as its package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tensorwright


def test_a_recognizer_reads_what_its_package_reads() -> None:
    package = pytest.importorskip("rapidocr_onnxruntime")
    pillow, draw, fonts = (pytest.importorskip(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    model = Path(package.__file__).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    module = tensorwright.compile(model, processing="auto", threads=1)
    theirs, font = package.RapidOCR().text_rec, fonts.load_default(40)
    for text in ("Compile once,", "run anywhere: 42 ms", "Total 1,234.56 EUR"):
        line = pillow.new("RGB", (int(font.getlength(text)) + 16, 56), "white")
        draw.Draw(line).text((8, 4), text, fill="black", font=font)
        pixels = np.asarray(line)
        ((expected, _),) = theirs([pixels[..., ::-1]])[0]
        assert (module.predict(pixels).text, expected) == (text, text)  # type: ignore[union-attr]
