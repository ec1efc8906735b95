"""`compare`: a model's outputs against another runtime's, then value by value, to name the first node that differs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import targets
from compiler.driver.compile import compile
from compiler.errors import InvalidModelError, MissingDependencyError, OptionError
from compiler.frontends.onnx.loading.loader import load_model
from compiler.frontends.onnx.structure import describe
from compiler.profiling.workload import complete_inputs
from compiler.support.import_arguments import Constants, Shapes
from compiler.support.interrupts import interruptible
from compiler.support.notebook import table_html
from compiler.support.progress_bar import automatic, shows_progress

Array = np.ndarray
Run = Callable[[Mapping[str, Array], Sequence[str]], dict[str, Array]]
REFERENCES = ("onnxruntime", "onnx")
DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Difference:
    """One tensor beside the reference's.

    Attributes:
        name: of the value in the model.
        node: the node that computes it, as text.
        error: the largest absolute difference over the largest magnitude of the reference; infinite where shapes
            differ, or NaN and infinities are in other places.
        problem: a difference other than in the numbers, or "".
        differs: whether `error` is beyond the tolerance.
    """

    name: str
    node: str
    error: float
    problem: str
    differs: bool


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        reference: with what the model was compared.
        outputs: of the model as it is compiled.
        layers: values inside of the model in the order of its nodes, compiled so that each is an output; empty where
            they were not asked for. Layers are then not fused as in the model itself.
    """

    model: str
    reference: str
    tolerance: float
    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...] = ()

    @property
    def equal(self) -> bool:
        """True if all outputs are within the tolerance."""
        return not any(each.differs for each in self.outputs)

    @property
    def first(self) -> Difference | None:
        """The first value inside of the model that differs, None where none does."""
        return next((each for each in self.layers if each.differs), None)

    @property
    def summary(self) -> str:
        """One line: whether the outputs agree, and the first layer that differs."""
        worst = max((each.error for each in self.outputs), default=0.0)
        if self.equal and self.first is None:
            return f"equal to {self.reference} within {self.tolerance:g} of the largest value (at most {worst:.2g})"
        if self.first is not None:
            where = f"{self.first.node}, value {self.first.name!r}"
            return f"differs from {self.reference} by up to {worst:.2g}; the first layer that differs is {where}"
        hint = "; no single layer does: compile with verify=True to find the pass" if self.layers else ""
        return f"differs from {self.reference} by up to {worst:.2g}{hint}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        first = None if self.first is None else asdict(self.first)
        return {**asdict(self), "equal": self.equal, "first": first}

    def __repr__(self) -> str:
        return f"<Comparison {self.model!r} {self.summary}>"

    def _repr_html_(self) -> str:
        rows = [(each.name, each.node, each.error, each.problem) for each in (*self.outputs, *self.layers)]
        return table_html(f"{self.model} {self.summary}", ("value", "node", "error", "problem"), rows)


@interruptible
@shows_progress
def compare(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    inputs: Mapping[str, object] | None = None,
    *,
    reference: str = "onnxruntime",
    target: str | targets.Target = "host",
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    sizes: Mapping[str, int] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    layers: bool | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
) -> Comparison:
    """Compare an ONNX model's outputs with another runtime's, and find the first node that differs.

    Args:
        source: a path to an .onnx file, an `onnx.ModelProto`, or its bytes.
        inputs: by name; random ones for the rest.
        reference: "onnxruntime", without its optimizations, or "onnx", the reference evaluator of the onnx package.
        shapes, constants, target, threads: as in `tensorwright.compile`.
        sizes: of symbolic dimensions, for random inputs; 1 for those not named.
        tolerance: how far values may be apart, as a share of the largest magnitude of the reference's.
        layers: compare values inside of the model too; None: where an output differs.
        progress: called with the name of each step as it begins; a bar unless given, and None for nothing.

    Raises:
        OptionError: the reference is unknown, or an option is at fault.
        MissingDependencyError: ONNX Runtime is not installed.
        UserError: of importing, compiling and running; also where the reference fails.
    """
    report: Callable[[str], None] = progress if progress is not None else automatic
    if reference not in REFERENCES:
        raise OptionError(f"reference={reference!r}", f"use one of {', '.join(REFERENCES)}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(f"tolerance={tolerance}", "give a share such as 0.001")
    proto = load_model(source).proto
    runner = _onnxruntime if reference == "onnxruntime" else _onnx_reference
    options = {"shapes": shapes, "constants": constants, "threads": threads, "records": False}
    report("compile")
    module = compile(source, target, **options, progress=None)  # type: ignore[arg-type]
    given = {name: np.asarray(value) if not isinstance(value, str) else value for name, value in (inputs or {}).items()}
    arrays = complete_inputs(module, given, sizes)
    feeds = {**arrays, **{name: np.asarray(value) for name, value in (constants or {}).items()}}
    run = runner(proto, source)
    producers = {name: describe(node) for node in proto.graph.node for name in node.output}
    names = [spec.name for spec in module.outputs]

    def differences(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> tuple[Difference, ...]:
        return tuple(
            _difference(name, producers.get(name, "model input"), ours[name], theirs[name], tolerance)
            for name in theirs
            if name in ours
        )

    report(f"run {reference}")
    outputs = differences(module.run(arrays), run(feeds, names))
    inner: tuple[Difference, ...] = ()
    if layers or (layers is None and any(each.differs for each in outputs)):
        report("compile layer by layer")
        values = tensor_values(proto)
        whole = compile(source, target, **options, outputs=values, progress=None)  # type: ignore[arg-type]
        report(f"run {reference} layer by layer")
        inner = differences(whole.run(arrays), run(feeds, values))
    return Comparison(_name(source, proto), reference, tolerance, outputs, inner)


def tensor_values(proto: onnx.ModelProto) -> list[str]:
    """The values of the main graph that nodes compute, in order, where they are known to be tensors."""
    inferred = onnx.shape_inference.infer_shapes(proto) if proto.ByteSize() < 1 << 31 else proto
    known = {
        each.name
        for each in (*inferred.graph.value_info, *inferred.graph.output)
        if each.type.HasField("tensor_type") and each.type.tensor_type.elem_type != onnx.TensorProto.STRING
    }
    return [name for node in proto.graph.node for name in node.output if name in known]


def _difference(name: str, node: str, ours: Array, theirs: Array, tolerance: float) -> Difference:
    problem, error = "", 0.0
    if ours.shape != theirs.shape:
        problem, error = f"shape {list(ours.shape)}, not {list(theirs.shape)}", math.inf
    elif theirs.size:
        left, right = (np.asarray(each).astype(np.float64) for each in (ours, theirs))
        finite = np.isfinite(right)
        if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(left[finite]).all():
            problem, error = "NaN or infinities in other places", math.inf
        elif finite.any():
            largest = float(np.abs(right[finite]).max())
            error = float(np.abs(left[finite] - right[finite]).max()) / (largest if largest > 0 else 1.0)
    return Difference(name, node, error, problem, error > tolerance)


def _onnxruntime(proto: onnx.ModelProto, source: object) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("ONNX Runtime is not installed", "pip install onnxruntime") from error

    folder = Path(source).parent if isinstance(source, str | os.PathLike) else None

    def run(feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = 3
        if folder is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            session = onnxruntime.InferenceSession(
                _with_outputs(proto, names).SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            wanted = {each.name for each in session.get_inputs()}
            results = session.run(list(names), {name: value for name, value in feeds.items() if name in wanted})
        except Exception as error:  # whatever its C++ side raises
            raise InvalidModelError(f"ONNX Runtime cannot run the model: {error}") from error
        return dict(zip(names, map(np.asarray, results), strict=True))

    return run


def _onnx_reference(proto: onnx.ModelProto, source: object) -> Run:
    from onnx.reference import ReferenceEvaluator

    def run(feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        try:
            results: Any = ReferenceEvaluator(_with_outputs(proto, names)).run(None, dict(feeds))
        except Exception as error:
            raise InvalidModelError(f"the reference evaluator of onnx cannot run the model: {error}") from error
        return dict(zip(names, map(np.asarray, results), strict=True))

    return run


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values as its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    declared = {each.name: each for each in proto.graph.output}
    inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info if proto.ByteSize() < 1 << 31 else ()
    known = {**{each.name: each for each in inferred}, **declared}
    del copy.graph.output[:]
    copy.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return copy


def _name(source: object, proto: onnx.ModelProto) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else proto.graph.name or "model"
