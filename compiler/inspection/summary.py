"""The summary of a compilation, for display and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from compiler.errors import InvalidModelError
from compiler.inspection.contents import accelerator_text, is_module_file, plan_text, target_text
from compiler.profiling.tensor_fields import tensor_list
from compiler.runtime import Module
from compiler.support.model_files import is_language_model


@dataclass(frozen=True)
class Coverage:
    """Numbers of supported, rewritten and refused nodes, and a line for each kind of operator that is rewritten."""

    nodes: dict[str, int]
    rewritten: list[str]


@dataclass(frozen=True)
class Summary:
    """A compiled module; sizes in bytes, times in seconds.

    Attributes:
        kernels_by_rule: number of kernels by schedule rule, in descending order; "fallback" and "as-is" run as plain
        loops.
        seconds: seconds by compilation step.
        precision: precisions estimated to be much faster on the target; "" if there are none.
        states: names of the inputs that are states.
        shown_inputs, shown_outputs: `inputs` and `outputs` without states.
    """

    path: str
    file_bytes: int
    target: str
    accelerator: str
    inputs: list[str]
    outputs: list[str]
    parameters: int
    parameter_values: int
    parameter_bytes: int
    kernels_by_rule: dict[str, int]
    memory_plan: str | None
    memory: dict[str, int] | None
    coverage: Coverage | None
    seconds: dict[str, float]
    precision: str
    states: list[str]
    shown_inputs: list[str]
    shown_outputs: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: tensors are objects, and the memory plan is its numbers."""
        fields = asdict(self)
        for name in ("memory_plan", "shown_inputs", "shown_outputs"):
            del fields[name]
        return {**fields, "inputs": tensor_list(self.inputs), "outputs": tensor_list(self.outputs)}


def check_is_not_compiled(path: Path) -> None:
    """Raise InvalidModelError for the file of a module."""
    if is_module_file(path):
        raise InvalidModelError(f"{path} is already compiled", f"run it: tensorwright run {path}")


def coverage_of(path: Path) -> Coverage | None:
    """The coverage of an ONNX file; None for other kinds of models. Raises UserError if the file cannot be read or is
    invalid."""
    if path.suffix == ".pt2" or is_language_model(path):
        return None
    from compiler.frontends.onnx import coverage_report

    report = coverage_report(path)
    nodes = {"supported": 0, "rewritten": 0, "refused": 0}
    for item in report.operators:
        nodes[item.support] += item.count
    rewritten = [
        f"{item.count} {item.operator}" + (f" ({item.reason})" if item.reason else "")
        for item in report.of("rewritten")
    ]
    return Coverage(nodes, rewritten)


def summarize(module: Module, path: Path, coverage: Coverage | None, seconds: Mapping[str, float]) -> Summary:
    """Summarize a module that was written to `path`."""
    manifest = module.manifest
    plan = manifest.memory_plan
    parameters = manifest.parameters
    return Summary(
        path=str(path),
        file_bytes=path.stat().st_size,
        target=target_text(manifest.target),
        accelerator=accelerator_text(manifest.target),
        inputs=[str(spec) for spec in manifest.inputs],
        outputs=[str(spec) for spec in manifest.outputs],
        parameters=len(parameters),
        parameter_values=sum(array.size for array in module.parameters.values()),
        parameter_bytes=sum(spec.nbytes for spec in parameters),
        kernels_by_rule=dict(Counter(entry.rule for entry in manifest.kernels).most_common()),
        memory_plan=plan_text(plan) if plan is not None else None,
        memory=msgspec.structs.asdict(plan) if plan is not None else None,
        coverage=coverage,
        seconds=dict(seconds),
        precision=manifest.target.faster_precisions,
        states=[state.input for state in manifest.states],
        shown_inputs=[
            str(spec) for spec in manifest.inputs if spec.name not in {each.input for each in manifest.states}
        ],
        shown_outputs=[
            str(spec) for spec in manifest.outputs if spec.name not in {each.output for each in manifest.states}
        ],
    )
