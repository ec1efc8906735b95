"""`inspect`: contents of a model or a module, and an estimate of its time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compiler.errors import storage_errors
from compiler.profiling.attribution import kind_of, layer_label, operators_of
from compiler.profiling.tensor_fields import tensor_list
from compiler.reports.formatting import plural
from compiler.support.balance import balance, task_counts
from compiler.support.formula import evaluate, names_in, nominal_size

if TYPE_CHECKING:
    from compiler.artifact.manifest import Manifest

MODULE_SUFFIX = ".twm"
_LONGEST_FORMULA = 60  # characters
_AS_STORED = ("threads", "versions", "format_version", "memory_plan", "fixed_inputs", "states")  # of the manifest


@dataclass(frozen=True)
class OperatorCount:
    """An operator of a model; `support` is "supported", "rewritten", "refused", or "" if not applicable."""

    operator: str
    count: int
    support: str = ""
    reason: str = ""


@dataclass(frozen=True)
class KernelEstimate:
    """A kernel: its work, and the lower bound of its time on the target's machine (None if not estimated).

    `nodes` are the model's nodes that it computes, the main one first; for a kernel of a module those of all its calls.
    `tasks` are those of a module's parallel loops (None: not known before it runs), `balance` the fraction of time in
    which all cores of the target work, `serial` why one core computes it.
    """

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
    nodes: tuple[str, ...] = ()
    tasks: tuple[int, ...] | None = None
    balance: float | None = None
    serial: str | None = None

    @property
    def label(self) -> str:
        """The main node and the number of others, or the kernel's name if no node is known."""
        return layer_label(self.nodes, self.name)


@dataclass
class Inspection:
    """Result of `inspect_model` and `inspect_module`; sizes in bytes, times in seconds.

    Attributes:
        kind: "model" or "module".
        facts: facts as text, by name: producer, opsets, target, versions.
        details: the same for programs: numbers, lists and objects.
        sizes: sizes of symbolic dimensions in the estimates.
        problem: the reason why there is no estimate, if there is none.
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
    details: dict[str, Any] = field(default_factory=dict)
    operators: list[OperatorCount] = field(default_factory=list)
    kernels: list[KernelEstimate] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; tensors are objects, and `details` replace `facts`."""
        texts = {name: value for name, value in asdict(self).items() if name != "facts"}
        return {**texts, "inputs": tensor_list(self.inputs), "outputs": tensor_list(self.outputs)}


def is_module_file(path: str | os.PathLike[str]) -> bool:
    """True if a path is that of a compiled module, by its name or the beginning of its content."""
    if Path(path).suffix == MODULE_SUFFIX:
        return True
    from compiler.artifact.container import MAGIC

    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # the code that opens it next reports the error


def inspect_module(path: str | os.PathLike[str]) -> Inspection:
    """Describe a compiled module from its file, on any machine; its machine code is not loaded. Raises StorageError or
    ArtifactError if the file cannot be read or is damaged."""
    from compiler.artifact import read_artifact, signatures_of

    manifest = read_artifact(path).manifest
    plan = manifest.memory_plan
    versions = manifest.versions
    facts = {
        "model": manifest.model_name,
        "target": target_text(manifest.target),
        "needs": ", ".join(manifest.target.required_cpu_features) or "nothing special",
        "threads": str(manifest.threads or "as the device has cores"),
        "scheduled for": plural(cores, "core") if (cores := target_cores(manifest.target)) else "unknown",
        "built with": f"tensorwright {versions.tensorwright}, tvm {versions.tvm}, tvm-ffi {versions.tvm_ffi}",
        "format": str(manifest.format_version),
        "signatures": str(len(signatures_of(path))),
    }
    if plan is not None:
        facts["memory plan"] = plan_text(plan)
    if accelerator := accelerator_text(manifest.target):
        facts["accelerator"] = accelerator
    if manifest.target.faster_precisions:
        facts["precision"] = manifest.target.faster_precisions
    if manifest.fixed_inputs:
        facts["fixed inputs"] = "; ".join(_fixed_text(fixed) for fixed in manifest.fixed_inputs)
    if manifest.states:
        facts["states"] = "\n".join(map(_state_text, manifest.states))
    return Inspection(
        kind="module",
        path=str(path),
        file_bytes=file_bytes(path),
        inputs=[str(spec) for spec in manifest.inputs],
        outputs=[str(spec) for spec in manifest.outputs],
        parameters=len(manifest.parameters),
        parameter_values=sum(element_count(spec.shape) for spec in manifest.parameters),
        parameter_bytes=sum(spec.nbytes for spec in manifest.parameters),
        facts=facts,
        details={**_module_details(manifest), "signatures": [each.public_key.hex() for each in signatures_of(path)]},
        kernels=sorted(_module_kernels(manifest), key=lambda each: -(each.operations or 0)),
    )


def _module_details(manifest: Manifest) -> dict[str, Any]:
    entries = msgspec.to_builtins(manifest)
    partition = manifest.target.details.get("partition")
    return {
        "model": manifest.model_name,
        "target": {name: entries["target"][name] for name in ("name", "architecture", "required_cpu_features")},
        "accelerator": partition.get("summary") if isinstance(partition, dict) else None,
        **{name: entries[name] for name in _AS_STORED},
    }


def target_text(target: Any) -> str:
    """A manifest's target as text: "host (x86_64, znver4)"."""
    options = target.details.get("engine_target")
    cpu = options.get("mcpu") if isinstance(options, dict) else None
    return f"{target.name} ({', '.join(filter(None, [target.architecture, cpu]))})"


def accelerator_text(target: Any) -> str:
    """A manifest's report about its target's accelerator, as text; "" if there is none."""
    report = target.details.get("partition")
    lines = report.get("summary") if isinstance(report, dict) else None
    return "\n".join(map(str, lines)) if isinstance(lines, list) else ""


def plan_text(plan: Any) -> str:
    """A manifest's memory plan as text; tensors of dynamic size count with every symbolic dimension set to 1, or the
    smallest size that the plan has a value for."""
    from compiler.reports.formatting import format_bytes

    formula = plan.dynamic_bytes
    if formula == "0" or not formula:
        known = "" if formula else "; without tensors of dynamic size"
        return (
            f"{format_bytes(plan.peak_bytes)} peak, {format_bytes(plan.without_reuse_bytes)} without reuse, "
            f"{format_bytes(plan.live_bytes)} at least{known}"
        )
    names = sorted(names_in(formula))
    size = nominal_size(formula)
    peak = plan.peak_bytes + evaluate(formula, dict.fromkeys(names, size))
    sizes = ", ".join(f"{name} = {size}" for name in names)
    parts = [formula] if len(formula) <= _LONGEST_FORMULA else []
    if parts and plan.peak_bytes:
        parts.append(str(plan.peak_bytes))
    return f"{format_bytes(peak)} peak at {sizes}" + (f" ({' + '.join(parts)} bytes)" if parts else "")


def _state_text(state: Any) -> str:
    """A state as one line of text."""
    rows = "" if state.axis is None else f", {'grows' if state.grows else 'rows'} along axis {state.axis}"
    return f"{state.input}: its next value is {state.output}{rows}"


def _fixed_text(fixed: Any) -> str:
    return str(fixed.tensor) + (f" = {list(fixed.values)}" if fixed.values is not None else "")


def _module_kernels(manifest: Any) -> list[KernelEstimate]:
    nodes: dict[str, list[tuple[str, ...]]] = {}
    if manifest.calls is not None:
        for callee, computed in manifest.calls.every_call():
            nodes.setdefault(callee, []).append(computed)
    cores = target_cores(manifest.target)
    return [_module_kernel(entry, nodes.get(entry.kernel, []), cores) for entry in manifest.kernels]


def target_cores(target: Any) -> int | None:
    """The number of cores that a module's kernels were scheduled for; None if its manifest does not have it."""
    machine = target.details.get("machine")
    cores = machine.get("cores") if isinstance(machine, dict) else None
    return cores if isinstance(cores, int) and cores > 0 else None


def _module_kernel(entry: Any, calls: Sequence[tuple[str, ...]], cores: int | None) -> KernelEstimate:
    tasks = None if entry.tasks is None else task_counts(entry.tasks, {})
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
        calls=len(calls) or None,
        operations=operations,
        formula=entry.operations,
        nbytes=None,
        seconds=None,
        share=None,
        nodes=tuple(dict.fromkeys(node for nodes in calls for node in nodes)),
        tasks=tasks,
        balance=None if tasks is None or cores is None else balance(tasks, cores),
        serial=entry.serial,
    )


def element_count(shape: Sequence[int | str]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def file_bytes(path: str | os.PathLike[str]) -> int:
    with storage_errors(path):
        return os.stat(path).st_size
