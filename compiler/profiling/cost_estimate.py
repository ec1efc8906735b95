"""What a model will cost on a target, without building it: operations, bytes and the least time of each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

import schedules.engine  # noqa: F401  (loads the engine without torch)
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.profiling.attribution import kind_of, operators_of
from compiler.profiling.formula import evaluate
from compiler.profiling.operation_count import OperationCount, count_kernels
from compiler.profiling.roofline import Roofline
from schedules.machine import dtype_bits


@dataclass(frozen=True)
class KernelCost:
    """All calls of one kernel in a run of the model.

    Attributes:
        operations: arithmetic operations, or None where they depend on the data.
        nbytes: bytes of its tensors: what must at least be read and written.
        seconds: the least time it takes on the target's machine.
        share: of the sum over all kernels.
    """

    name: str
    operators: tuple[str, ...]
    kind: str
    calls: int
    operations: int | None
    nbytes: int
    seconds: float
    share: float


def estimate_costs(model: ImportedModel, target: Any, roofline: Roofline, sizes: Mapping[str, int]) -> list[KernelCost]:
    """Costs by kernel, most time first; calls inside branches and loops count once.

    Args:
        sizes: of the model's symbolic dimensions.

    Raises:
        TensorwrightError: a pass failed.
    """
    mod = relax.transform.BindSymbolicVars(dict(sizes), "main")(model.mod) if sizes else model.mod
    context = PipelineContext(target=target, machine=target.machine)
    lowered = run_pipeline(mod, context, until="fuse").mod
    counts = count_kernels(lowered)
    calls = _kernel_calls(lowered)
    costs: dict[str, list[Any]] = {}
    for (name, shapes), times in calls.items():
        operations = _operations(counts.get(name), shapes)
        nbytes = sum(_nbytes(shape, dtype) for shape, dtype in shapes)
        entry = costs.setdefault(name, [0, 0, 0, 0.0])
        entry[0] += times
        entry[1] = None if operations is None or entry[1] is None else entry[1] + times * operations
        entry[2] += times * nbytes
        entry[3] += times * roofline.seconds(operations or 0, nbytes)
    total = sum(entry[3] for entry in costs.values()) or 1.0
    made = [
        KernelCost(name, operators_of(name), kind_of(name), times, operations, nbytes, seconds, seconds / total)
        for name, (times, operations, nbytes, seconds) in costs.items()
    ]
    return sorted(made, key=lambda cost: -cost.seconds)


_Tensors = tuple[tuple[tuple[int, ...], str], ...]


def _kernel_calls(mod: tvm.IRModule) -> Counter[tuple[str, _Tensors]]:
    """How often each kernel is called with which shapes (arguments, then results)."""
    calls: Counter[tuple[str, _Tensors]] = Counter()
    for _, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue

        def visit(node: Any) -> None:
            if isinstance(node, tvm.ir.Call) and isinstance(node.op, tvm.ir.Op) and node.op.name == "relax.call_tir":
                tensors = [*_tensor_shapes([argument.ty for argument in node.args[1]]), *_tensor_shapes([node.ty])]
                calls[(str(node.args[0].name_hint), tuple(tensors))] += 1

        relax.analysis.post_order_visit(function, visit)
    return calls


def _tensor_shapes(types: list[Any]) -> list[tuple[tuple[int, ...], str]]:
    found = []
    for each in types:
        if isinstance(each, relax.TupleType):
            found += _tensor_shapes(list(each.fields))
        elif isinstance(each, relax.TensorType) and each.shape is not None:
            # A size that is known at run time only counts as 1.
            shape = tuple(int(size.value) if isinstance(size, tvm.tirx.IntImm) else 1 for size in each.shape)
            found.append((shape, str(each.dtype)))
    return found


def _operations(count: OperationCount | None, tensors: _Tensors) -> int | None:
    if count is None:
        return None
    sizes = {}
    for name, (argument, axis) in count.symbols.items():
        shape = tensors[argument][0] if argument < len(tensors) else ()
        sizes[name] = shape[axis] if 0 <= axis < len(shape) else 1
    return evaluate(count.formula, sizes)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements * dtype_bits(dtype) // 8
