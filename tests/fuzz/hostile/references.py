"""Reference results: ONNX Runtime for ONNX models, PyTorch for modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.fuzz.hostile.catalog import Feeds, Subject, TorchSource
from tests.fuzz.hostile.verdict import Theirs

Array = NDArray[Any]
_STORED_BYTES = 16 << 20


def computed(subject: Subject, number: int, feeds: Feeds) -> tuple[Theirs, Any]:
    """The reference's results for these inputs, or its error; only the shape for large results."""
    try:
        run = _session(subject, number)
    except NotImplementedError as error:
        return "has no such operator", str(error)
    try:
        arrays = run(feeds)
    except Exception as error:  # each reference has its own exception classes, none of them public
        return "refuses", f"{type(error).__name__}: {' '.join(str(error).split())}"[-300:]
    return "computes", [array if array.nbytes <= _STORED_BYTES else (array.dtype, array.shape) for array in arrays]


_sessions: dict[int, Callable[[Feeds], list[Array]]] = {}


def _session(subject: Subject, number: int) -> Callable[[Feeds], list[Array]]:
    if number not in _sessions:
        _sessions.clear()
        source = subject.source()
        if not isinstance(source, TorchSource | onnx.ModelProto):
            raise NotImplementedError(f"nothing else runs a {type(source).__name__}")
        _sessions[number] = _torch(source) if isinstance(source, TorchSource) else _onnxruntime(source)
    return _sessions[number]


def _onnxruntime(model: Any) -> Callable[[Feeds], list[Array]]:
    """Run ONNX Runtime. Raises NotImplementedError if it has no kernel."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NotImplementedError(" ".join(str(error).split())[-200:]) from error
    names = [each.name for each in session.get_inputs()]

    def run(feeds: Feeds) -> list[Array]:
        return [np.asarray(each) for each in session.run(None, {name: feeds[name] for name in names})]

    return run


def _torch(source: TorchSource) -> Callable[[Feeds], list[Array]]:
    import torch

    torch.set_num_threads(1)

    def run(feeds: Feeds) -> list[Array]:
        with torch.no_grad():
            results = source.module(*(torch.from_numpy(np.array(array)) for array in feeds.values()))
        return [each.numpy() for each in torch.utils._pytree.tree_leaves(results)]

    return run


def differences(ours: list[Array], theirs: list[Any], difference: Callable[[Array, Array], str | None]) -> str | None:
    """The error of our outputs, or None."""
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs instead of {len(theirs)}"
    for position, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(other, tuple):
            wrong = None if (one.dtype, one.shape) == other else f"{one.dtype}{one.shape} instead of {other}"
        else:
            wrong = difference(one, other)
        if wrong is not None:
            return f"output {position}: {wrong}"
    return None
