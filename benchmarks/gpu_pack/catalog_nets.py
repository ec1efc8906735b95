"""Nets of the catalog as entries: generated weights, references in float64 or by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks._models import Task, cache_folder
from benchmarks._quantized import quantized
from benchmarks.catalog import CATALOG, inputs_for
from benchmarks.gpu_pack.build import Case, Model, arrays_of
from benchmarks.gpu_pack.nets import NETS
from benchmarks.gpu_pack.references import CALLS, tolerance
from benchmarks.gpu_pack.references import NETS as ALLOWED
from benchmarks.gpu_pack.seeded import (
    Array,
    Weight,
    inputs_of,
    relative_error,
    rounded_error,
    seed_onnx,
    seed_torch,
)
from compiler.errors import VerificationError
from compiler.support.cache import key_of

_MIN_ELEMENTS = 4096  # smaller weights of ONNX files are unchanged
_CODE = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]


def own_net(name: str, precision: str) -> Model:
    """Return a net of `nets.py`."""
    inputs = list(inputs_of(name, NETS[name].inputs).values())
    return _torch_model(name, NETS[name].build, inputs, arrays_of(inputs), precision)


def catalog_net(name: str, precision: str) -> Model:
    """Return a net of the catalog, at the first of its sizes."""
    model = CATALOG[name]
    source, arrays = model.load(), {key: np.asarray(value) for key, value in inputs_for(model).items()}
    if isinstance(source, torch.nn.Module):
        return _torch_model(name, lambda: source, [], arrays, precision)
    proto = source if isinstance(source, onnx.ModelProto) else onnx.load(str(source))
    weights = [] if "trained" in model.tags else seed_onnx(proto, name, _MIN_ELEMENTS)
    shapes = model.shapes or {key: array.shape for key, array in arrays.items()}
    path = _file(name, proto)
    if precision == "int8":
        return _int8(name, path, shapes, weights, [], arrays)
    expected = _by_onnxruntime(path, arrays)
    keywords = {"shapes": shapes, "constants": model.constants}
    return _model(str(path), keywords, [], arrays, expected, weights, precision)


def _torch_model(
    name: str,
    build: Callable[[], torch.nn.Module],
    inputs: Sequence[object],
    arrays: Mapping[str, Array],
    precision: str,
) -> Model:
    """Return the ONNX export of a PyTorch model; one export serves all precisions."""
    net = _prepared(name, build, arrays)
    shapes = {key: array.shape for key, array in arrays.items()}
    if precision == "int8":
        return _int8(name, net.path, shapes, net.weights, inputs, arrays)
    _check_sensitivity(net.errors.get(precision, 0.0), precision)
    return _model(str(net.path), {"shapes": shapes}, inputs, arrays, net.expected, net.weights, precision)


def _check_sensitivity(error: float, precision: str) -> None:
    """Raise VerificationError for a net whose correct results differ so much that wrong ones would not be detected."""
    if error > ALLOWED[precision] / 2:
        raise VerificationError(
            f"the net with generated weights amplifies roundings: two right runs in {precision} differ by {error:.2g} "
            f"of the result, and {ALLOWED[precision]} is allowed"
        )


@dataclass(frozen=True)
class _Prepared:
    path: Path
    weights: Sequence[Weight]
    expected: Mapping[str, Array]
    errors: Mapping[str, float]  # by precision


_LAST: dict[str, _Prepared] = {}  # entries of one net are consecutive


def _prepared(name: str, build: Callable[[], torch.nn.Module], arrays: Mapping[str, Array]) -> _Prepared:
    """Return a net with generated weights as a file, and its results in float64."""
    if name not in _LAST:
        _LAST.clear()
        module = build()
        tensors = tuple(torch.from_numpy(np.array(each)) for each in arrays.values())
        weights = seed_torch(module, name, tensors)
        path = _file(name, module, tensors, list(arrays))
        wide = tuple(each.double() if each.is_floating_point() else each for each in tensors)
        with torch.no_grad():
            result = module.double()(*wide)
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        expected = {f"output {index}": each.numpy() for index, each in enumerate(results)}
        first, module = next(iter(expected.values())), module.float()
        types = {"float16": torch.float16, "bf16": torch.bfloat16}
        errors = {precision: rounded_error(module, tensors, dtype, first) for precision, dtype in types.items()}
        _LAST[name] = _Prepared(path, weights, expected, errors)
    return _LAST[name]


def _model(
    source: Any,
    keywords: Mapping[str, Any],
    inputs: Sequence[Any],
    arrays: Mapping[str, Array],
    expected: Mapping[str, Array],
    weights: Sequence[Weight],
    precision: str,
) -> Model:
    allowed, of_calls = tolerance(rms=ALLOWED[precision]), tolerance(rms=CALLS[precision])
    compiled = "float32" if precision == "int8" else precision
    cases = [Case(inputs, expected)]
    return Model(source, keywords, cases, allowed, of_calls, weights, arrays, precision=compiled)


def _int8(
    name: str,
    path: Path,
    shapes: Mapping[str, object],
    weights: Sequence[Weight],
    inputs: Sequence[object],
    arrays: Mapping[str, Array],
) -> Model:
    stored = path.with_suffix(".npz")
    given: dict[str, Any] = dict(arrays)
    np.savez(stored, **given)
    task = quantized(Task(path.stem, path, stored, dict(shapes), 0))
    expected, fused = (_by_onnxruntime(task.path, arrays, optimized) for optimized in (False, True))
    _check_sensitivity(max(relative_error(fused[key], expected[key]) for key in expected), "int8")
    return _model(str(task.path), {"shapes": shapes}, inputs, arrays, expected, weights, "int8")


def _by_onnxruntime(path: Path, arrays: Mapping[str, Array], optimized: bool = False) -> dict[str, Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    results: dict[str, Array] = dict(zip(names, session.run(names, dict(arrays)), strict=True))
    return results


def _file(name: str, source: Any, arguments: tuple[torch.Tensor, ...] = (), names: Sequence[str] = ()) -> Path:
    """Return a net as a cached ONNX file, created once for this code."""
    path = cache_folder() / f"pack-{name}-{key_of(_CODE)}.onnx"
    if path.exists():
        return path
    if isinstance(source, onnx.ModelProto):
        onnx.save(source, path)
        return path
    program = torch.onnx.export(source, arguments, input_names=list(names), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))
    return path
