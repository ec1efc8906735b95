"""Predictions: a picture, a text or a recording in, boxes, masks, classes, texts, vectors or times out."""

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
