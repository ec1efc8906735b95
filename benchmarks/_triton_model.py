"""A model for Triton's Python backend that runs ONNX Runtime; executed by Triton's own interpreter."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]


class TritonPythonModel:
    """`model.onnx` next to this file, one thread per run, not spinning between runs."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Called by Triton once for each instance."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        folder = os.path.join(arguments["model_repository"], arguments["model_version"])
        self._session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), options)
        (self._input,), (self._output,) = self._session.get_inputs(), self._session.get_outputs()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests of a batch at once."""
        inputs = [triton.get_input_tensor_by_name(each, self._input.name).as_numpy() for each in requests]
        (computed,) = self._session.run(None, {self._input.name: np.concatenate(inputs)})
        responses, first = [], 0
        for array in inputs:
            part = computed[first : first + len(array)]
            # Not Tensor(name, part): the wheel's interpreter mistakes arrays of NumPy 2 for empty ones.
            responses.append(triton.InferenceResponse([triton.Tensor.from_dlpack(self._output.name, part)]))
            first += len(array)
        return responses
