"""int8 versions of models by ONNX Runtime's static quantizer, read by every contestant of a comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks._models import Task, cache_folder

_SAMPLES = 4


def quantized(task: Task) -> Task:
    """Return the task for the model in QDQ format: activations uint8, weights int8 per output channel.

    Ranges come from random data, so results are valid for speed and for comparing contestants, not for accuracy. A
    model that is already quantized is unchanged.
    """
    weights = onnx.load(str(task.path), load_external_data=False).graph.initializer
    if any(each.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for each in weights):
        return task
    path = cache_folder() / f"{task.name}-qdq.onnx"
    if not path.exists():
        _quantize(task, path)
    return replace(task, path=path)


def _quantize(task: Task, path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quant_pre_process(str(task.path), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            _Samples(task),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.root.setLevel(level)
        prepared.unlink(missing_ok=True)


class _Samples:
    """The task's inputs and noisy versions of them, as the quantizer asks for them."""

    def __init__(self, task: Task) -> None:
        with np.load(task.arrays) as stored:
            self._inputs = {name: stored[name] for name in stored.files}
        self._rest = self._all()

    def _all(self) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(1)
        for _ in range(_SAMPLES):
            yield {
                name: (array + generator.standard_normal(array.shape)).astype(array.dtype)
                if array.dtype.kind == "f"
                else array
                for name, array in self._inputs.items()
            }

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rest, None)
