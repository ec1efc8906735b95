"""`inspect`: what is in a model or a module, and where its time will go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import InputError, OptionError, StorageError, UnsupportedModelError, UserError
from compiler.profiling.attribution import kind_of, operators_of
from compiler.profiling.formula import evaluate

MODULE_SUFFIX = ".twm"


@dataclass(frozen=True)
class OperatorCount:
    """An operator of a model; `support` is "supported", "rewritten", "refused", or "" where that is no question."""

    operator: str
    count: int
    support: str = ""
    reason: str = ""


@dataclass(frozen=True)
class KernelEstimate:
    """A kernel: its work, and the least time for it on the target's machine (None where not estimated)."""

    name: str
    operators: tuple[str, ...]
    kind: str
    rule: str | None
    calls: int | None
    operations: int | None
    formula: str | None
    nbytes: int | None
    seconds: float | None
    share: float | None


@dataclass
class Inspection:
    """What `inspect_model` and `inspect_module` find; sizes in bytes, times in seconds.

    Attributes:
        kind: "model" or "module".
        facts: single things worth knowing, by name: producer, opsets, target, versions.
        sizes: what symbolic dimensions were taken as in the estimates.
        problem: why there is no estimate, where there is none.
    """

    kind: str
    path: str
    file_bytes: int
    inputs: list[str]
    outputs: list[str]
    parameters: int
    parameter_values: int
    parameter_bytes: int
    facts: dict[str, str] = field(default_factory=dict)
    operators: list[OperatorCount] = field(default_factory=list)
    kernels: list[KernelEstimate] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def is_module_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a compiled module: by its name, or by how its content begins."""
    if Path(path).suffix == MODULE_SUFFIX:
        return True
    from compiler.artifact.container import MAGIC

    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # whoever opens it next says what is wrong with it


def inspect_module(path: str | os.PathLike[str]) -> Inspection:
    """Describe a compiled module from its file; its machine code is not loaded, so any machine will do.

    Raises:
        StorageError, ArtifactError: the file can not be read or is damaged.
    """
    from compiler.artifact import read_artifact, signatures_of

    manifest = read_artifact(path).manifest
    plan = manifest.memory_plan
    versions = manifest.versions
    facts = {
        "model": manifest.model_name,
        "target": target_text(manifest.target),
        "needs": ", ".join(manifest.target.required_cpu_features) or "nothing special",
        "threads": str(manifest.threads or "as the device has cores"),
        "built with": f"tensorwright {versions.tensorwright}, tvm {versions.tvm}, tvm-ffi {versions.tvm_ffi}",
        "format": str(manifest.format_version),
        "signatures": str(len(signatures_of(path))),
    }
    if plan is not None:
        facts["memory plan"] = plan_text(plan)
    if manifest.fixed_inputs:
        facts["fixed inputs"] = "; ".join(_fixed_text(fixed) for fixed in manifest.fixed_inputs)
    return Inspection(
        kind="module",
        path=str(path),
        file_bytes=_file_bytes(path),
        inputs=[str(spec) for spec in manifest.inputs],
        outputs=[str(spec) for spec in manifest.outputs],
        parameters=len(manifest.parameters),
        parameter_values=sum(_elements(spec.shape) for spec in manifest.parameters),
        parameter_bytes=sum(spec.nbytes for spec in manifest.parameters),
        facts=facts,
        kernels=sorted((_module_kernel(entry) for entry in manifest.kernels), key=lambda each: -(each.operations or 0)),
    )


def target_text(target: Any) -> str:
    """A manifest's target in words: "host (x86_64, znver4)"."""
    engine = target.details.get("engine_target")
    cpu = engine.get("mcpu") if isinstance(engine, dict) else None
    return f"{target.name} ({', '.join(filter(None, [target.architecture, cpu]))})"


def plan_text(plan: Any) -> str:
    """A manifest's memory plan in words."""
    from compiler.profiling.formatting import format_bytes

    return (
        f"{format_bytes(plan.peak_bytes)} peak, {format_bytes(plan.without_reuse_bytes)} without reuse, "
        f"{format_bytes(plan.live_bytes)} at least"
    )


def _fixed_text(fixed: Any) -> str:
    return str(fixed.tensor) + (f" = {list(fixed.values)}" if fixed.values is not None else "")


def _module_kernel(entry: Any) -> KernelEstimate:
    operations = None
    if entry.operations is not None and not entry.symbols:
        try:
            operations = evaluate(entry.operations, {})
        except ValueError:
            operations = None  # a formula of a newer format
    return KernelEstimate(
        name=entry.kernel,
        operators=operators_of(entry.kernel),
        kind=kind_of(entry.kernel),
        rule=f"{entry.rule} ({entry.source})",
        calls=None,
        operations=operations,
        formula=entry.operations,
        nbytes=None,
        seconds=None,
        share=None,
    )


def inspect_model(
    path: str | os.PathLike[str],
    target: str = "host",
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Inspection:
    """Describe an ONNX model: contents, coverage, and an estimate of each kernel's cost on a target.

    Args:
        shapes: sizes of inputs by name, as `compile` takes them.
        constants: values of inputs that are fixed.
        sizes: of dimensions that stay symbolic, by name, for the estimate; 1 for those not named.

    Raises:
        UserError: the file can not be read or is broken, or the target is unknown.
    """
    from compiler.frontends.onnx import coverage_report
    from compiler.frontends.onnx.loader import load_model

    loaded = load_model(Path(path))
    proto = loaded.proto
    values = [(tuple(tensor.dims), tensor.data_type) for tensor in proto.graph.initializer]
    inspection = Inspection(
        kind="model",
        path=str(path),
        file_bytes=_file_bytes(path),
        inputs=[],
        outputs=[],
        parameters=len(values),
        parameter_values=sum(_elements(shape) for shape, _ in values),
        parameter_bytes=sum(_elements(shape) * _onnx_bits(dtype) // 8 for shape, dtype in values),
        facts={
            "graph": proto.graph.name or "(unnamed)",
            "producer": " ".join(filter(None, [proto.producer_name, proto.producer_version])) or "(unknown)",
            "opsets": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in loaded.opsets.items()),
        },
        operators=[
            OperatorCount(
                f"{item.domain}.{item.operator}" if item.domain else item.operator,
                item.count,
                item.support,
                item.reason,
            )
            for item in coverage_report(Path(path)).operators
        ],
    )
    names = {tensor.name for tensor in proto.graph.initializer}
    inspection.inputs = [_onnx_text(value) for value in proto.graph.input if value.name not in names]
    inspection.outputs = [_onnx_text(value) for value in proto.graph.output]
    _estimate(inspection, Path(path), target, shapes, constants, sizes)
    return inspection


def _estimate(
    inspection: Inspection,
    path: Path,
    target: str,
    shapes: Mapping[str, Sequence[int | str]] | None,
    constants: Mapping[str, Any] | None,
    sizes: Mapping[str, int] | None,
) -> None:
    """Fill in the kernels, or the reason why there are none: a model need not compile to be inspected."""
    from compiler.driver import find_target
    from compiler.frontends.source import import_model
    from compiler.profiling.cost_estimate import estimate_costs
    from compiler.profiling.roofline import Roofline
    from compiler.profiling.workload import symbolic_sizes

    chosen = find_target(target)
    try:
        model = import_model(path, shapes=shapes, constants=constants)
    except UnsupportedModelError as error:
        inspection.problem = error.message
        return
    except (OptionError, InputError):
        raise  # of the caller's, not of the model's
    except UserError as error:
        inspection.problem = str(error)
        return
    inspection.inputs = [str(spec) for spec in model.inputs]
    inspection.outputs = [str(spec) for spec in model.outputs]
    inspection.sizes = symbolic_sizes(model.inputs, {}, sizes)
    roofline = Roofline.of(chosen.machine, measured=chosen.name == "host")
    inspection.facts["estimated for"] = f"{chosen.description or chosen.name}: {roofline.source}"
    inspection.kernels = [
        KernelEstimate(**{**asdict(cost), "operators": cost.operators}, rule=None, formula=None)
        for cost in estimate_costs(model, chosen, roofline, inspection.sizes)
    ]


@dataclass(frozen=True)
class ModelInput:
    """An input as a model file declares it; `dtype` is the engine's name, "" where it is no tensor."""

    name: str
    dtype: str


def model_inputs(path: str | os.PathLike[str]) -> list[ModelInput]:
    """The inputs that an ONNX file declares, found out without importing it; none for other kinds of models.

    Raises:
        UserError: the file can not be read or is broken.
    """
    if Path(path).suffix == ".pt2":
        return []

    from compiler.frontends.onnx.loader import load_model

    graph = load_model(Path(path)).proto.graph
    names = {tensor.name for tensor in graph.initializer}
    found = []
    for value in graph.input:
        if value.name not in names:
            kind = value.type.tensor_type.elem_type
            found.append(ModelInput(value.name, _onnx_dtype(kind) if kind else ""))
    return found


def _onnx_text(value: Any) -> str:

    if not value.type.HasField("tensor_type"):
        return f"{value.name}: {value.type.WhichOneof('value') or 'unknown type'}"
    tensor = value.type.tensor_type
    dtype = _onnx_dtype(tensor.elem_type)
    sizes = [
        size.dim_param or (str(size.dim_value) if size.HasField("dim_value") else "?") for size in tensor.shape.dim
    ]
    return f"{value.name}: {dtype}[{', '.join(sizes)}]"


def _onnx_dtype(kind: int) -> str:
    """The element type as the engine names it: float32 where ONNX says FLOAT."""
    import onnx

    if kind == onnx.TensorProto.STRING:
        return "string"
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else "undefined"


def _onnx_bits(dtype: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(dtype)
    if name in {"INT4", "UINT4", "FLOAT4E2M1"}:
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize) * 8


def _elements(shape: Sequence[int | str]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def _file_bytes(path: str | os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise StorageError(f"{path} can not be read: {error.strerror or error}") from error
