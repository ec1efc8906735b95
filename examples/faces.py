"""Faces in a picture, found by a YOLOv8 whose ONNX file states its processing."""

from __future__ import annotations

from pathlib import Path

from benchmarks.catalog import package_folder


def model_path() -> Path:
    """The detector inside the package `nudenet`; faces are two of its classes."""
    return package_folder("nudenet") / "320n.onnx"


def picture_path() -> Path:
    """A photograph of an astronaut by NASA, inside the package `scikit-image`."""
    return package_folder("skimage") / "data" / "astronaut.png"
