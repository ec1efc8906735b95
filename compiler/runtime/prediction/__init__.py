"""Predictions: from an image, a text or a recording to boxes, masks, classes, texts, vectors or times."""

from compiler.runtime.prediction.predict import Given, predict, processing_of, rank
from compiler.runtime.prediction.results import (
    Classes,
    Detections,
    Prediction,
    Ranking,
    Segmentation,
    Speech,
    Text,
    Vector,
)

__all__ = [
    "Classes",
    "Detections",
    "Given",
    "Prediction",
    "Ranking",
    "Segmentation",
    "Speech",
    "Text",
    "Vector",
    "predict",
    "processing_of",
    "rank",
]
