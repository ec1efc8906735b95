"""Estimated cost of a model on a target, without building it: operations, bytes and the least time of each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.frontends.imported_model import ImportedModel
from compiler.inspection.roofline import Roofline
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from compiler.passes.rewriting.node_tracker import NodeTracker
from compiler.profiling.attribution import kind_of, names_of, operators_of
from compiler.support.elements import elements_read
from compiler.support.formula import evaluate
from compiler.support.gathered import gathered_by_kernel
from compiler.support.operation_count import OperationCount, UncountableError, count_kernels, size_formula
from schedules.gpu.machine import GpuMachine
from schedules.instructions.products.table import products
from schedules.machine import Machine, dtype_bits


@dataclass(frozen=True)
class KernelCost:
    """The calls of one kernel for the same nodes of the model.

    Attributes:
        nodes: of the model that it computes, the main one first.
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
    nodes: tuple[str, ...]


def estimate_costs(model: ImportedModel, target: Any, roofline: Roofline, sizes: Mapping[str, int]) -> list[KernelCost]:
    """Costs by layer, most time first; calls inside branches and loops count once.

    Args:
        sizes: of the model's symbolic dimensions.

    Raises:
        TensorwrightError: a pass failed.
    """
    options = PassOptions(nodes=model.nodes)
    context = PipelineContext(target=target, machine=target.machine, options=options)
    lowered = run_pipeline(model.mod, context, until="fuse").mod
    counts, gathered = count_kernels(lowered), gathered_by_kernel(lowered)
    calls = _kernel_calls(lowered, context.tracker, sizes)
    costs: dict[tuple[str, tuple[str, ...]], list[Any]] = {}
    for (name, nodes, shapes), times in calls.items():
        operations = _operations(counts.get(name), shapes)
        nbytes = _bytes_moved(shapes, gathered.get(name, frozenset()))
        entry = costs.setdefault((name, nodes), [0, 0, 0, 0.0])
        entry[0] += times
        entry[1] = None if operations is None or entry[1] is None else entry[1] + times * operations
        entry[2] += times * nbytes
        entry[3] += times * roofline.seconds(operations or 0, nbytes)
    total = sum(entry[3] for entry in costs.values()) or 1.0
    made = [
        KernelCost(name, operators_of(name), kind_of(name), times, operations, nbytes, seconds, seconds / total, nodes)
        for (name, nodes), (times, operations, nbytes, seconds) in costs.items()
    ]
    return sorted(made, key=lambda cost: -cost.seconds)


_WORTH_SAYING = 1.3
_PRECISIONS = (
    # What it is called, how one asks for it, types of the operands, and their bytes beside those of float32.
    ("bfloat16", "--precision bf16", ("bfloat16", "bfloat16"), 0.5),
    ("int8", "tensorwright quantize", ("uint8", "int8"), 0.25),
)


def faster_precisions(costs: Sequence[KernelCost], machine: Machine, roofline: Roofline) -> str | None:
    """Which precisions a float32 model is estimated to be much faster in, as a line of text; None where none is.

    Products and convolutions bound by their arithmetic run at the rate of the machine's instruction, and move fewer
    bytes; the other kernels take as long as before.
    """
    if isinstance(machine, GpuMachine):
        return None
    total = sum(cost.seconds for cost in costs)
    found = []
    for name, how, operands, share in _PRECISIONS:
        rates = [each.rate_on(machine) for each in products(machine, *operands)]
        if not rates or max(rates) <= 1:
            continue
        saved = 0.0
        for cost in costs:
            narrow = roofline.seconds(int((cost.operations or 0) / max(rates)), int(cost.nbytes * share))
            is_product = cost.kind in ("convolution", "matmul") and cost.operations is not None
            if is_product and cost.seconds > roofline.seconds(0, cost.nbytes):
                saved += cost.seconds - narrow
        if total > 0 and total / (total - saved) >= _WORTH_SAYING:
            found.append(f"{name} is estimated {total / (total - saved):.1f} times as fast here: {how}")
    return "; ".join(found) or None


_Tensors = tuple[tuple[tuple[int, ...], str], ...]


def _kernel_calls(
    mod: tvm.IRModule, tracker: NodeTracker, sizes: Mapping[str, int]
) -> Counter[tuple[str, tuple[str, ...], _Tensors]]:
    """How often each kernel is called for which nodes of the model, with which shapes (arguments, then results)."""
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
    found = []
    for each in types:
        if isinstance(each, relax.TupleType):
            found += _tensor_shapes(list(each.fields), sizes)
        elif isinstance(each, relax.TensorType) and each.shape is not None:
            found.append((tuple(_size(size, sizes) for size in each.shape), str(each.dtype)))
    return found


def _size(expression: object, sizes: Mapping[str, int]) -> int:
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
