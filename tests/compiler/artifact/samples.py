"""Artifacts without real machine code, for tests that do not run them."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from compiler.artifact import Artifact, Contents, TargetDescription, TensorDescription

PARAMETERS: dict[str, np.ndarray[Any, Any]] = {
    "weight": np.arange(15, dtype=np.float32).reshape(3, 5),
    "empty": np.zeros((0, 4), np.float64),
    "scalar": np.array(3, np.int64),
    "brain": np.arange(7).astype(ml_dtypes.bfloat16),
    "nibbles": np.arange(-3, 4).astype(ml_dtypes.int4),
    "mask": np.array([True, False, True]),
    "eight": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
    "half": np.linspace(-1, 1, 6).astype(np.float16).reshape(2, 3),
}


def sample_artifact(**fields: Any) -> Artifact:
    """Create a small artifact with every kind of content; `fields` replace arguments of `create_artifact`."""
    arguments: dict[str, Any] = {
        "model_name": "sample",
        "inputs": [TensorDescription(name="x", shape=("batch", 4), dtype="float32")],
        "outputs": [TensorDescription(name="y", shape=("batch", "2*batch"), dtype="float16")],
        "target": TargetDescription(name="test", architecture="x86_64", required_cpu_features=("avx2",)),
        "library": b"not really a library" * 7,
        "parameters": PARAMETERS,
        "fixed": {"axes": np.array([1, 2]), "table": np.zeros(100, np.float32)},
        "reference_inputs": {"x": np.ones((2, 4), np.float32)},
        "reference_outputs": {"y": np.ones((2, 4), np.float16)},
        "threads": 2,
        "assets": {"tokenizer.json": b"{}", "empty": b""},
    }
    return create_artifact(**{**arguments, **fields})


def create_artifact(**fields: Any) -> Artifact:
    """Call `Artifact.create` with the fields of `Contents` as separate arguments."""
    contents = {each.name: fields.pop(each.name) for each in dataclasses.fields(Contents) if each.name in fields}
    return Artifact.create(contents=Contents(**contents), **fields)
