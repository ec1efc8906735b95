"""Estimated cost of a model on a target, without building it: operations, bytes and minimum time of each kernel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import relax

from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from compiler.passes.rewriting.node_tracker import NodeTracker
from compiler.profiling.attribution import kind_of, names_of, operators_of
from compiler.profiling.faster_precisions import KernelWork, float32_work
from compiler.support.balance import elements_read
from compiler.support.formula import evaluate
from compiler.support.operation_count import (
    OperationCount,
    UncountableError,
    count_kernels,
    gathered_by_kernel,
    size_formula,
)
from compiler.support.roofline import Roofline
from schedules.machine import dtype_bits


@dataclass(frozen=True)
class KernelCost:
    """The calls of one kernel for the same nodes of the model.

    Attributes:
        nodes: the model's nodes that it computes, the main one first.
        operations: arithmetic operations, or None if they depend on the data.
        nbytes: bytes of its tensors, a lower bound of its memory traffic.
        seconds: the lower bound of its time on the target's machine.
        share: fraction of the sum over all kernels.
        work: work of all calls, for estimates in other precisions.
    """

    name: str
    operators: tuple[str, ...]
    kind: str
    calls: int
    operations: int | None
    nbytes: int
    seconds: float
    share: float
    nodes: tuple[str, ...]
    work: KernelWork


def estimate_costs(model: ImportedModel, target: Any, roofline: Roofline, sizes: Mapping[str, int]) -> list[KernelCost]:
    """Costs by layer, in descending order of time; calls inside branches and loops count once. Raises TensorwrightError
    if a pass failed. `sizes`: sizes of the model's symbolic dimensions."""
    options = PassOptions(nodes=model.nodes)
    context = PipelineContext(target=target, machine=target.machine, options=options)
    lowered = run_pipeline(model.mod, context, until="fuse").mod
    counts, gathered = count_kernels(lowered), gathered_by_kernel(lowered)
    calls = _kernel_calls(lowered, context.tracker, sizes)
    costs: dict[tuple[str, tuple[str, ...]], list[Any]] = {}
    floats: dict[str, str] = {}
    for (name, nodes, shapes), times in calls.items():
        operations = _operations(counts.get(name), shapes)
        nbytes = _bytes_moved(shapes, gathered.get(name, frozenset()))
        floats[name] = float32_work(kind_of(name), [(dtype, _size_of(shape, dtype)) for shape, dtype in shapes])
        entry = costs.setdefault((name, nodes), [0, 0, 0, 0.0])
        entry[0] += times
        entry[1] = None if operations is None or entry[1] is None else entry[1] + times * operations
        entry[2] += times * nbytes
        entry[3] += times * roofline.seconds(operations or 0, nbytes)
    total = sum(entry[3] for entry in costs.values()) or 1.0
    made = [
        KernelCost(
            name,
            operators_of(name),
            kind_of(name),
            times,
            operations,
            nbytes,
            seconds,
            seconds / total,
            nodes,
            KernelWork(1, floats[name], operations or 0, nbytes, times * counts[name].direct if name in counts else 0),
        )
        for (name, nodes), (times, operations, nbytes, seconds) in costs.items()
    ]
    return sorted(made, key=lambda cost: -cost.seconds)


_Tensors = tuple[tuple[tuple[int, ...], str], ...]


def _kernel_calls(
    mod: tvm.IRModule, tracker: NodeTracker, sizes: Mapping[str, int]
) -> Counter[tuple[str, tuple[str, ...], _Tensors]]:
    """Number of calls of each kernel by nodes of the model and shapes (arguments, then results)."""
    calls: Counter[tuple[str, tuple[str, ...], _Tensors]] = Counter()
    for variable, function in rewritable_functions(mod):
        for binding in bindings_of(function.body):
            call = binding.value
            if operator_name(call) == "relax.call_tir":
                nodes = tracker.of_call(str(variable.name_hint), str(binding.var.name))
                types = [*(argument.ty for argument in call.args[1]), call.ty]
                shapes = tuple(_tensor_shapes(types, sizes))
                calls[(str(call.args[0].name_hint), names_of(nodes), shapes)] += 1
    return calls


def _tensor_shapes(types: list[Any], sizes: Mapping[str, int]) -> list[tuple[tuple[int, ...], str]]:
    shapes = []
    for ty in types:
        if isinstance(ty, relax.TupleType):
            shapes += _tensor_shapes(list(ty.fields), sizes)
        elif isinstance(ty, relax.TensorType) and ty.shape is not None:
            shapes.append((tuple(_size(size, sizes) for size in ty.shape), str(ty.dtype)))
    return shapes


def _size(expression: object, sizes: Mapping[str, int]) -> int:
    try:
        return evaluate(size_formula(expression), sizes)
    except (UncountableError, ValueError):
        return 1  # known only at run time


def _operations(count: OperationCount | None, tensors: _Tensors) -> int | None:
    if count is None:
        return None
    sizes = {}
    for name, (argument, axis) in count.symbols.items():
        shape = tensors[argument][0] if argument < len(tensors) else ()
        sizes[name] = shape[axis] if 0 <= axis < len(shape) else 1
    return evaluate(count.formula, sizes)


def _bytes_moved(tensors: _Tensors, gathered: frozenset[int]) -> int:
    """Lower bound of the bytes that a call reads and writes."""
    shapes = {position: shape for position, (shape, _) in enumerate(tensors)}
    return sum(
        elements_read(shapes, gathered, position) * dtype_bits(dtype) // 8
        for position, (_, dtype) in enumerate(tensors)
    )


def _size_of(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * dtype_bits(dtype) // 8
