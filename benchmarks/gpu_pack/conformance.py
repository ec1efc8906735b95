"""The conformance suite's models as entries: the same models, tolerances and reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from benchmarks.gpu_pack.build import Case, Model, arrays_of
from benchmarks.gpu_pack.generator import seed_of
from benchmarks.gpu_pack.references import CALLS, tolerance
from targets.conformance.models import (
    DTYPES,
    FAMILIES,
    encoder,
    operator_model,
    quantized_functions,
    quantized_net,
    small_net,
)
from targets.conformance.suite import TOLERANCES

_STEPS = 2.002  # like the suite: two steps of the result
_ALL = 1 << 20  # few results: all of them are compared


def models() -> dict[str, Callable[[], Model]]:
    """By name, in the suite's order."""
    builders: dict[str, Callable[[], Model]] = {
        f"{family}-{dtype}".replace(" ", "-"): partial(_operators, family, dtype)
        for family in FAMILIES
        for dtype in DTYPES
        if dtype in FAMILIES[family][1]
    }
    builders["small-net"] = lambda: _model(small_net(2), [small_net(2)], tolerance(relative=TOLERANCES["float32"]))
    builders["encoder"] = lambda: _model(encoder(2, 11), [encoder(2, 11)], tolerance(relative=TOLERANCES["float32"]))
    builders["quantized-net"] = partial(_quantized, quantized_net)
    builders["quantized-functions"] = partial(_quantized, quantized_functions)
    builders["open-batch"] = lambda: _model(
        small_net("batch"), [small_net(1), small_net(3)], tolerance(relative=TOLERANCES["float32"])
    )
    builders["open-length"] = lambda: _model(
        encoder("batch", "length"),
        [encoder(*sizes) for sizes in ((1, 1), (3, 7), (2, 33))],
        tolerance(relative=TOLERANCES["float32"]),
    )
    return builders


def _operators(family: str, dtype: str) -> Model:
    model = operator_model(family, dtype)
    assert model is not None
    return _model(model, [model], tolerance(relative=TOLERANCES.get(dtype, 0.0)))


def _quantized(make: Callable[[], tuple[onnx.ModelProto, float]]) -> Model:
    model, step = make()
    return _model(model, [model], tolerance(absolute=_STEPS * step))


def _model(source: onnx.ModelProto, fixed: list[onnx.ModelProto], allowed: Mapping[str, float]) -> Model:
    """`fixed`: the same model at its run-time sizes."""
    cases = [_case(each, f"{source.graph.name} {index}") for index, each in enumerate(fixed)]
    return Model(
        source,
        {},
        cases,
        allowed,
        tolerance(rms=CALLS["int8"] if "quantized" in source.graph.name else 5e-3),
        samples=_ALL,
    )


def _case(model: onnx.ModelProto, name: str) -> Case:
    inputs = [_input(value, name) for value in model.graph.input]
    names = [output.name for output in model.graph.output]
    results = ReferenceEvaluator(model).run(None, arrays_of(inputs))
    return Case(inputs, {name: np.asarray(result) for name, result in zip(names, results, strict=True)})


def _input(value: Any, name: str) -> dict[str, Any]:
    """Return values like the suite's: normal, or integers from -9 (unsigned: 0) to 8."""
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    make: dict[str, Any] = {"kind": "reals", "seed": seed_of(name, value.name)}
    if dtype.kind != "f":
        make = {**make, "kind": "integers", "low": 0 if dtype.kind == "u" else -9, "high": 9}
    return {"name": value.name, "dtype": str(dtype), "shape": shape, "make": make}
