"""Builds an imported module with TVM's own pipeline only, to measure the frontend without this project's passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import tvm

from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.onnx import import_onnx
from compiler.frontends.onnx.dtypes import from_carrier, to_carrier
from tests.unoptimized import unoptimized_machine

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def build(model: ImportedModel) -> Run:
    """Return a function from inputs by name to outputs by name."""
    machine = unoptimized_machine(model.mod)

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = [to_carrier(np.asarray(feeds[s.name]), s.dtype) for s in model.inputs]
        results = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(a).reshape(a.shape)) for a in arrays))
        return {
            spec.name: from_carrier(result.numpy(), spec.dtype)
            for spec, result in zip(model.outputs, results, strict=True)
        }

    return run


def import_and_build(source: onnx.ModelProto, **options: Any) -> Run:
    """Import a model and build it."""
    return build(import_onnx(source, **options))
