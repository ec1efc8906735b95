"""`inspect_model`: contents of a model's file, coverage, and estimated cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.errors import InputError, OptionError, UnsupportedModelError, UserError
from compiler.inspection.contents import Inspection, KernelEstimate, OperatorCount, element_count, file_bytes
from compiler.support.model_files import is_language_model


def inspect_model(
    path: str | os.PathLike[str],
    target: str = "host",
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, object] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Inspection:
    """Describe a model: contents, coverage, and an estimate of each kernel's cost on a target. Raises UserError if the
    file cannot be read or is invalid, or the target is unknown.

    Args:
        shapes: sizes of inputs by name, as in `compile`.
        constants: values of inputs that are fixed.
        sizes: sizes of dimensions that stay symbolic, by name, for the estimate; 1 for missing ones.
    """
    inspection = _empty(path) if Path(path).suffix == ".pt2" else _onnx_contents(Path(path))
    _estimate(inspection, Path(path), target, shapes, constants, sizes)
    return inspection


def _empty(path: str | os.PathLike[str]) -> Inspection:
    return Inspection("model", str(path), file_bytes(path), [], [], 0, 0, 0)


def _onnx_contents(path: Path) -> Inspection:
    """Declarations of an ONNX file, and the coverage of its operators."""
    from compiler.frontends.onnx import coverage_report
    from compiler.frontends.onnx.loading.loader import load_model

    loaded = load_model(path)
    proto = loaded.proto
    values = [(tuple(tensor.dims), tensor.data_type) for tensor in proto.graph.initializer]
    inspection = _empty(path)
    inspection.parameters = len(values)
    inspection.parameter_values = sum(element_count(shape) for shape, _ in values)
    inspection.parameter_bytes = sum(element_count(shape) * _onnx_bits(dtype) // 8 for shape, dtype in values)
    inspection.facts = {
        "graph": proto.graph.name or "(unnamed)",
        "producer": " ".join(filter(None, [proto.producer_name, proto.producer_version])) or "(unknown)",
        "opsets": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in loaded.opsets.items()),
    }
    inspection.details = {
        "graph": proto.graph.name,
        "producer": {"name": proto.producer_name, "version": proto.producer_version},
        "opsets": {domain or "ai.onnx": version for domain, version in loaded.opsets.items()},
    }
    inspection.operators = [_operator(item) for item in coverage_report(path).operators]
    names = {tensor.name for tensor in proto.graph.initializer}
    inspection.inputs = [_onnx_text(value) for value in proto.graph.input if value.name not in names]
    inspection.outputs = [_onnx_text(value) for value in proto.graph.output]
    return inspection


def _operator(item: Any) -> OperatorCount:
    name = f"{item.domain}.{item.operator}" if item.domain else item.operator
    return OperatorCount(name, item.count, item.support, item.reason)


def _count_constants(inspection: Inspection, mod: Any) -> None:
    """Count the parameters of an imported module, if its file does not list them."""
    from tvm import relax
    from tvm.ir import GenericConst

    constants: list[Any] = []

    def visit(node: object) -> None:
        if isinstance(node, GenericConst):
            constants.append(node.value)

    relax.analysis.post_order_visit(mod["main"], visit)
    arrays = [value.numpy() for value in constants]
    inspection.parameters = len(arrays)
    inspection.parameter_values = sum(array.size for array in arrays)
    inspection.parameter_bytes = sum(array.nbytes for array in arrays)


def _estimate(
    inspection: Inspection,
    path: Path,
    target: str,
    shapes: Mapping[str, Sequence[int | str]] | None,
    constants: Mapping[str, Any] | None,
    sizes: Mapping[str, int] | None,
) -> None:
    """Fill in the kernels, or the reason why there are none: a model can be inspected even if it does not compile."""
    from compiler.driver.compile import find_target
    from compiler.frontends.source import import_model
    from compiler.inspection.cost_estimate import estimate_costs
    from compiler.profiling.faster_precisions import faster_precisions
    from compiler.profiling.workload import symbolic_sizes
    from compiler.support.roofline import Roofline

    chosen = find_target(target)
    try:
        model = import_model(path, shapes=shapes, constants=constants)
    except UnsupportedModelError as error:
        inspection.problem = error.message
        return
    except (OptionError, InputError):
        raise  # an error of the caller, not of the model
    except UserError as error:
        inspection.problem = str(error)
        return
    inspection.inputs = [str(spec) for spec in model.inputs]
    inspection.outputs = [str(spec) for spec in model.outputs]
    if not inspection.operators:
        _count_constants(inspection, model.mod)
    inspection.sizes = symbolic_sizes(model.inputs, {}, sizes)
    roofline = Roofline.of(chosen.machine, measured=chosen.name == "host")
    inspection.facts["estimated for"] = f"{chosen.description or chosen.name}: {roofline.source}"
    inspection.details["estimated_for"] = {"target": chosen.name, **asdict(roofline)}
    costs = estimate_costs(model, chosen, roofline, inspection.sizes)
    names = KernelEstimate.__dataclass_fields__
    inspection.kernels = [
        KernelEstimate(**{name: each for name, each in vars(cost).items() if name in names}, rule=None, formula=None)
        for cost in costs
    ]
    faster = faster_precisions([cost.work for cost in costs], chosen.machine, roofline)
    if faster is not None:
        inspection.facts["precision"] = faster


@dataclass(frozen=True)
class ModelInput:
    """An input as declared by a model file; `dtype` is TVM's name, "" if it is not a tensor."""

    name: str
    dtype: str


def model_inputs(path: str | os.PathLike[str]) -> list[ModelInput]:
    """The inputs that an ONNX file declares, without importing it; empty for other kinds of models. Raises UserError if
    the file cannot be read or is invalid."""
    if Path(path).suffix == ".pt2" or is_language_model(Path(path)):
        return []

    from compiler.frontends.onnx.loading.loader import load_model

    graph = load_model(Path(path)).proto.graph
    names = {tensor.name for tensor in graph.initializer}
    inputs = []
    for value in graph.input:
        if value.name not in names:
            kind = value.type.tensor_type.elem_type
            inputs.append(ModelInput(value.name, _onnx_dtype(kind) if kind else ""))
    return inputs


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
    """TVM's name of an element type: float32 for ONNX's FLOAT."""
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
