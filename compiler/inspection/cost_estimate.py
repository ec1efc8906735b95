"""What a model will cost on a target, without building it: operations, bytes and the least time of each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.frontends.imported_model import ImportedModel
from compiler.inspection.roofline import Roofline
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.profiling.attribution import kind_of, operators_of
from compiler.profiling.gathered import elements_read, gathered_by_kernel
from compiler.support.formula import evaluate
from compiler.support.operation_count import OperationCount, UncountableError, count_kernels, size_formula
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
    context = PipelineContext(target=target, machine=target.machine)
    lowered = run_pipeline(model.mod, context, until="fuse").mod
    counts, gathered = count_kernels(lowered), gathered_by_kernel(lowered)
    calls = _kernel_calls(lowered, sizes)
    costs: dict[str, list[Any]] = {}
    for (name, shapes), times in calls.items():
        operations = _operations(counts.get(name), shapes)
        nbytes = _bytes_moved(shapes, gathered.get(name, frozenset()))
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


def _kernel_calls(mod: tvm.IRModule, sizes: Mapping[str, int]) -> Counter[tuple[str, _Tensors]]:
    """How often each kernel is called with which shapes (arguments, then results)."""
    calls: Counter[tuple[str, _Tensors]] = Counter()
    for _, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue

        def visit(node: Any) -> None:
            if isinstance(node, tvm.ir.Call) and isinstance(node.op, tvm.ir.Op) and node.op.name == "relax.call_tir":
                types = [*(argument.ty for argument in node.args[1]), node.ty]
                calls[(str(node.args[0].name_hint), tuple(_tensor_shapes(types, sizes)))] += 1

        relax.analysis.post_order_visit(function, visit)
    return calls


def _tensor_shapes(types: list[Any], sizes: Mapping[str, int]) -> list[tuple[tuple[int, ...], str]]:
    found = []
    for each in types:
        if isinstance(each, relax.TupleType):
            found += _tensor_shapes(list(each.fields), sizes)
        elif isinstance(each, relax.TensorType) and each.shape is not None:
            found.append((tuple(_size(size, sizes) for size in each.shape), str(each.dtype)))
    return found


def _size(expression: Any, sizes: Mapping[str, int]) -> int:
    try:
        return evaluate(size_formula(expression), sizes)
    except (UncountableError, ValueError):
        return 1  # known at run time only


def _operations(count: OperationCount | None, tensors: _Tensors) -> int | None:
    if count is None:
        return None
    sizes = {}
    for name, (argument, axis) in count.symbols.items():
        shape = tensors[argument][0] if argument < len(tensors) else ()
        sizes[name] = shape[axis] if 0 <= axis < len(shape) else 1
    return evaluate(count.formula, sizes)


def _bytes_moved(tensors: _Tensors, gathered: frozenset[int]) -> int:
    """Bytes that a call must at least read and write."""
    shapes = {position: shape for position, (shape, _) in enumerate(tensors)}
    return sum(
        elements_read(shapes, gathered, position) * dtype_bits(dtype) // 8
        for position, (_, dtype) in enumerate(tensors)
    )
