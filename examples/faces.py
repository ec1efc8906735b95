"""Detect faces in a picture with a YOLOv8 whose ONNX file describes its processing."""

from __future__ import annotations

from pathlib import Path

from benchmarks.catalog import package_folder


def model_path() -> Path:
    """Return the path of the detector in the package `nudenet`; two of its classes are faces."""
    return package_folder("nudenet") / "320n.onnx"


def picture_path() -> Path:
    """Return the path of NASA's photograph of an astronaut in the package `scikit-image`."""
    return package_folder("skimage") / "data" / "astronaut.png"
