"""Builds manifest entries from compilation results."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import targets
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.entries import MAIN_ENTRY
from compiler.artifact.manifest import (
    MAX_BRANCH_DEPTH,
    MAX_ELEMENTS,
    CallList,
    JsonValue,
    KernelProvenance,
    MemoryPlan,
    PassTiming,
    PositionDescription,
    StateDescription,
    TargetDescription,
    TensorDescription,
)
from compiler.errors import InvalidModelError, Refusal, UnsupportedModelError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.pipeline import PipelineResult
from compiler.passes.rewriting.size_variants import ANY_SIZE
from compiler.profiling.attribution import kind_of, names_of
from compiler.profiling.faster_precisions import KernelWork, faster_precisions, float32_work
from compiler.records.library import TunedConfigs
from compiler.support.balance import UNKNOWN, elements_read
from compiler.support.formula import evaluate, names_in, nominal_size, with_names
from compiler.support.model_nodes import Branches, Step, call_counts
from compiler.support.operation_count import UncountableError, size_formula, symbol_positions
from compiler.support.roofline import Roofline
from schedules.annotations import SERIAL_REASON
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.expression import constant_int, nodes
from schedules.ir.stages import kernels_of
from schedules.ir.tir import s_tir, tirx, tvm
from schedules.ir.tvm_types import Call, Expr, PrimFunc, Stmt, Var
from schedules.machine import dtype_bits
from schedules.task_split import min_parallel_cycles


def tensor_descriptions(specs: Sequence[TensorSpec]) -> list[TensorDescription]:
    """Descriptions of a model's inputs or outputs for the manifest. Raises InvalidModelError if a tensor is larger than
    any memory, and UnsupportedModelError if a tensor's element type is not supported in modules."""
    for spec in specs:
        if math.prod(max(size, 1) for size in spec.shape if isinstance(size, int)) > MAX_ELEMENTS:
            raise InvalidModelError(f"{spec.name!r} has the shape {list(spec.shape)}, which is larger than any memory")
    refusals = [
        Refusal("graph", spec.name, f"its element type {spec.dtype} is not supported in modules")
        for spec in specs
        if spec.dtype not in ELEMENT_TYPES
    ]
    if refusals:
        raise UnsupportedModelError(refusals)
    return [
        TensorDescription(name=spec.name, shape=spec.shape, dtype=spec.dtype, carrier=spec.carrier) for spec in specs
    ]


def requirements(model: ImportedModel) -> dict[str, Any]:
    """Keyword arguments of `Artifact.create` for requirements on the inputs' sizes and indices."""
    return {
        "requirements": list(model.requirements),
        "indices": list(model.indices),
    }


def states(model: ImportedModel) -> dict[str, Any]:
    """Keyword arguments of `Artifact.create` for the states of sessions."""
    position = model.position
    states = [(state.name, state.input, state.output, state.axis, state.grows) for state in model.states]
    described = [model.inputs, model.outputs, states, position] if states else []
    return {
        "state_format": hashlib.sha256(repr(described).encode()).hexdigest() if described else None,
        "states": tuple(
            StateDescription(**{name: value for name, value in vars(state).items() if name != "initial"})
            for state in model.states
        ),
        "position": None if position is None else PositionDescription(input=position.input, rows=position.rows),
    }


def initial_states(model: ImportedModel) -> dict[str, np.ndarray]:
    """Initial values of states that do not start as zeros, by input name."""
    return {
        each.input: np.array(each.initial, order="C")  # np.ascontiguousarray would add an axis to a scalar
        for each in model.states
        if each.initial is not None and np.any(each.initial)
    }


def manifest_entries(
    target: targets.Target, pipeline: PipelineResult, tuned: TunedConfigs | None = None
) -> dict[str, Any]:
    """Keyword arguments of `Artifact.create` for the target, kernels and their calls, passes and the memory plan."""
    return {
        "target": TargetDescription(
            name=target.name,
            architecture=target.architecture,
            required_cpu_features=tuple(target.required_features),
            details=_target_details(target, pipeline),
        ),
        "kernels": _kernels(target, pipeline, tuned),
        "calls": call_list(pipeline.report.calls),
        "passes": [PassTiming(name=timing.name, seconds=timing.seconds) for timing in pipeline.timings],
        "memory_plan": _memory_plan(pipeline),
    }


def _target_details(target: targets.Target, pipeline: PipelineResult) -> dict[str, Any]:
    """The target's own description, the operators its accelerator computes, and precisions that would be much
    faster."""
    details = target.describe()
    partition, faster = pipeline.report.partition, _faster_precisions(target, pipeline)
    details |= {} if partition is None else {"partition": partition}
    return details if faster is None else {**details, "faster_precisions": faster}


def _faster_precisions(target: targets.Target, pipeline: PipelineResult) -> str | None:
    """A line about faster precisions; unknown sizes count as 1, or as the smallest size for which the formulas have a
    value."""
    if target.pipeline != "processor":
        return None
    report = pipeline.report
    works, calls = [], call_counts(report.calls)
    for name, function in ((str(variable.name_hint), each) for variable, each in kernels_of(pipeline.mod)):
        count = report.operations.get(name)
        if name in calls and count is not None:
            shapes = dict(enumerate(map(_known_shape, function.params)))
            sizes = [elements_read(shapes, report.gathered.get(name, frozenset()), at) for at in shapes]
            types = [str(each.ty.dtype) for each in function.params]
            tensors = [(dtype, size * dtype_bits(dtype) // 8) for dtype, size in zip(types, sizes, strict=True)]
            operations = evaluate(count.formula, dict.fromkeys(count.symbols, nominal_size(count.formula)))
            nbytes = sum(size for _, size in tensors)
            works.append(
                KernelWork(calls[name], float32_work(kind_of(name), tensors), operations, nbytes, count.direct)
            )
    return faster_precisions(works, target.machine, Roofline.of(target.machine, measured=False))


def _known_shape(parameter: Var) -> tuple[int, ...]:
    """The shape of a tensor, with 1 for unknown sizes; () for a number."""
    return tuple(int(getattr(size, "value", 1)) for size in getattr(parameter.ty, "shape", ()))


def _kernels(target: targets.Target, pipeline: PipelineResult, tuned: TunedConfigs | None) -> list[KernelProvenance]:
    counts = pipeline.report.operations
    scheduled = dict(kernels_of(pipeline.mod)) if target.pipeline == "processor" else {}
    functions = {str(variable.name_hint): function for variable, function in scheduled.items()}
    kernels = []
    for entry in pipeline.report.kernels:
        count = counts.get(entry.kernel)
        function = functions.get(entry.kernel)
        tasks, positions = (None, {}) if function is None else parallel_tasks(function)
        kernels.append(
            KernelProvenance(
                kernel=entry.kernel,
                rule=entry.rule or entry.source,
                source="as-is" if entry.rule is None else "record" if entry.source == "record" else "default",
                config=dict(entry.config),
                origin=tuned.origin(entry.workload) if tuned is not None and entry.source == "record" else None,
                measure=tuned.measure(entry.workload) if tuned is not None and entry.source == "record" else None,
                operations=count.formula if count is not None else None,
                symbols={**positions, **(count.symbols if count is not None else {})},
                tasks=tasks,
                serial=None if function is None else serial_reason(function, target.machine.cores),
                gathered=tuple(sorted(pipeline.report.gathered.get(entry.kernel, ()))),
                outputs=pipeline.report.outputs.get(entry.kernel, 1),
            )
        )
    return kernels


def _memory_plan(pipeline: PipelineResult) -> MemoryPlan | None:
    """The memory plan of `main`, or of the function for every size if there are variants; loop and branch bodies
    allocate separately."""
    plans = pipeline.report.memory
    name = ANY_SIZE if ANY_SIZE in plans else MAIN_ENTRY
    plan = plans.get(name)
    if plan is None:
        return None
    return MemoryPlan(
        peak_bytes=plan["peak"],
        without_reuse_bytes=plan["without_reuse"],
        live_bytes=plan["lower_bound"],
        dynamic_bytes=pipeline.report.dynamic_memory.get(name, "0"),
    )


def call_list(functions: Mapping[str, Sequence[Step]]) -> CallList | None:
    """The manifest's entry; None if no call has a node."""
    nodes: dict[str, int] = {}
    callees: dict[str, int] = {}

    def number(name: str, known: dict[str, int]) -> int:
        return known.setdefault(name, len(known))

    def listed(steps: Sequence[Step], depth: int) -> list[JsonValue]:
        calls: list[JsonValue] = []
        for step in steps:
            if isinstance(step, Branches):
                if depth < MAX_BRANCH_DEPTH:
                    calls.append([listed(step.when_true, depth + 1), listed(step.when_false, depth + 1)])
            else:
                calls.append([number(step.callee, callees), *(number(name, nodes) for name in names_of(step.nodes))])
        return calls

    made = {name: listed(steps, 0) for name, steps in functions.items()}
    return CallList(nodes=tuple(nodes), callees=tuple(callees), functions=made) if nodes else None


_LONGEST = 1000  # maximum characters of a formula


def parallel_tasks(function: PrimFunc) -> tuple[tuple[str, ...], dict[str, tuple[int, int]]]:
    """The distinct extents of a kernel's parallel loops, in order: numbers, formulas of sizes, or `UNKNOWN`; and where
    a call's arguments contain those sizes, as in `OperationCount`."""
    positions = symbol_positions(function)
    values: dict[str, Expr] = {str(each.var.name): each.value for each in nodes(function.body, tirx.Bind)}
    loops = [loop for loop in nodes(function.body, tirx.For) if loop.kind == tirx.ForKind.PARALLEL]

    def formula(extent: Expr) -> str:
        def text_of(name: str) -> str:
            if name not in positions and name not in values:
                raise UncountableError(f"a size named {name!r}")
            return name if name in positions else f"({formula(values[name])})"

        text = with_names(size_formula(extent), text_of)
        if len(text) > _LONGEST:
            raise UncountableError("a long formula")
        return text

    def known(extent: Expr) -> str:
        try:
            return formula(extent)
        except UncountableError:
            return UNKNOWN

    tasks = tuple(dict.fromkeys(known(loop.extent) for loop in loops))
    used = {name for each in tasks if each != UNKNOWN for name in names_in(each)}
    return tasks, {name: positions[name] for name in sorted(used)}


_STEPS_OF_A_STORE = 4  # the most usual value in `schedules.codegen.parallel.work`
_PACKED_CALLS = ("tirx.tvm_call_packed", "tirx.tvm_call_cpacked")


def serial_reason(function: PrimFunc, cores: int) -> str | None:
    """The reason why a kernel scheduled for several cores runs partly or fully on one thread; None if all significant
    work is parallel."""
    shared, marked, called = _threads_of(function.body)
    if cores == 1:
        return "compiled for one core"
    least = MIN_PARALLEL_WORK * min_parallel_cycles(cores) / min_parallel_cycles(2)

    def is_little(statement: Stmt) -> bool:
        return _STEPS_OF_A_STORE * _stores(statement) < least

    if not shared and is_little(function.body):
        return "too little work"
    reasons = [str(loop.annotations[SERIAL_REASON]) for loop in marked if not is_little(loop)]
    reasons += [f"a call of {name}" for name in called]
    return ", ".join(dict.fromkeys(reasons)) or (None if shared else "no loop that threads can share")


def _threads_of(body: Stmt) -> tuple[bool, list[Stmt], list[str]]:
    """True if a loop is parallel; the marked loops that are neither inside nor around a parallel loop; and the
    functions called."""
    called = [str(call.args[0].value) for call in nodes(body, tvm.ir.Call) if _is_packed(call)]
    shared = [loop for loop in _loops(body) if _is_shared(loop)]
    inside = [each for loop in shared for each in _loops(loop.body)]
    marked = [
        loop
        for loop in _loops(body)
        if SERIAL_REASON in loop.annotations
        and not any(loop.same_as(each) for each in inside)
        and not any(map(_is_shared, _loops(loop.body)))
    ]
    return bool(shared), marked, called


def _loops(statement: Stmt) -> list[Stmt]:
    return nodes(statement, tirx.For)


def _is_shared(loop: Stmt) -> bool:
    extent = constant_int(loop.extent)
    return loop.kind == tirx.ForKind.PARALLEL and not (isinstance(extent, int) and extent <= 1)


def _is_packed(call: Call) -> bool:
    return str(getattr(call.op, "name", "")) in _PACKED_CALLS


def _stores(statement: Stmt) -> float:
    """The number of vectors or elements that a statement stores; infinite if a loop's extent is unknown."""
    if isinstance(statement, tirx.For):
        inner, extent = _stores(statement.body), constant_int(statement.extent)
        if not inner or statement.kind == tirx.ForKind.VECTORIZED:
            return inner
        return inner * extent if isinstance(extent, int) else math.inf
    if isinstance(statement, tirx.SeqStmt):
        return sum(map(_stores, statement.seq))
    if isinstance(statement, tirx.IfThenElse):
        otherwise = statement.else_case
        return max(_stores(statement.then_case), 0 if otherwise is None else _stores(otherwise))
    if isinstance(statement, tirx.While):
        return math.inf
    if isinstance(statement, s_tir.SBlockRealize):
        return _stores(statement.block.body)
    body = getattr(statement, "body", None)
    return float(isinstance(statement, tirx.BufferStore)) if body is None else _stores(body)
