"""Predictions: a picture, a text or a recording in, boxes, classes, vectors or times out."""

from compiler.runtime.prediction.predict import Given, predict, processing_of
from compiler.runtime.prediction.results import Classes, Detections, Prediction, Speech, Vector

__all__ = ["Classes", "Detections", "Given", "Prediction", "Speech", "Vector", "predict", "processing_of"]
