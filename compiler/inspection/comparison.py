"""`compare`: compares a model's outputs with another runtime's, then value by value, to find the first differing node.

`Side`: the interface through which `compare` runs a model and its reference.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from typing_extensions import Unpack

import targets
from compiler.errors import OptionError, storage_errors
from compiler.inspection.comparing.onnx_side import OnnxSide
from compiler.support.interrupts import interruptible
from compiler.support.notebook import table_html
from compiler.support.options import ImportArguments, takes_imports
from compiler.support.progress_bar import automatic, shows_progress

Array = np.ndarray


class Side(Protocol):
    """A model in two runtimes. Values are its inner tensors, by name, in the order of its nodes.

    Attributes:
        model: the model's name.
        reference: name of the other runtime.
        outputs: names of the model's outputs.
        values: names of all values computed by nodes.
        nodes: by value, the node that computes it, as text.
        operands: by value, the names of the values and inputs that this node reads.
        example: inputs by name, numpy arrays.
    """

    @property
    def model(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def values(self) -> Sequence[str]: ...
    @property
    def nodes(self) -> Mapping[str, str]: ...
    @property
    def operands(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def example(self) -> Mapping[str, Array]: ...

    def ours(self, names: Sequence[str]) -> dict[str, Array]:
        """Compute these values with a module compiled to return only them."""

    def theirs(self, names: Sequence[str]) -> dict[str, Array]:
        """Compute these values with the reference."""


REFERENCES = ("onnxruntime", "onnx", "torch")
DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Difference:
    """One tensor compared with the reference's.

    Attributes:
        name: name of the value in the model.
        node: the node that computes it, as text.
        error: the largest absolute difference relative to the largest magnitude of the reference; infinite if shapes
            differ, or NaN and infinities are at other indices.
        problem: a difference other than in the numbers, or "".
        differs: whether `error` exceeds the tolerance.
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
        reference: the runtime that the model was compared with.
        outputs: outputs of the model as compiled.
        layers: inner values of the model in the order of its nodes, compiled so that each is an output; empty if not
            requested. Layers are then not fused as in the model itself.
        fused: if no layer differs, the first value that differs in a model that ends with it: its node differs when it
        is
            fused with those before it.
        tensors: for the first value that differs: "ours", "reference", and "operand NAME" of its node from the
        reference.
    """

    model: str
    reference: str
    tolerance: float
    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...] = ()
    fused: Difference | None = None
    tensors: dict[str, Array] = field(default_factory=dict, repr=False)

    @property
    def equal(self) -> bool:
        """True if all outputs are within the tolerance."""
        return not any(each.differs for each in self.outputs)

    @property
    def first(self) -> Difference | None:
        """The first inner value of the model that differs, None if none does."""
        return next((each for each in self.layers if each.differs), self.fused)

    @property
    def summary(self) -> str:
        """The result in one line, with the first layer that differs."""
        worst = max((each.error for each in self.outputs), default=0.0)
        if self.equal and self.first is None:
            return f"equal to {self.reference} within {self.tolerance:g} of the largest value (at most {worst:.2g})"
        if self.first is not None:
            where = f"{self.first.node}, value {self.first.name!r}"
            where += ", fused with the layer before it" if self.first is self.fused else ""
            return f"differs from {self.reference} by up to {worst:.2g}; the first layer that differs is {where}"
        hint = "; no single layer does: compile with verify=True to find the pass" if self.layers else ""
        return f"differs from {self.reference} by up to {worst:.2g}{hint}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        first = None if self.first is None else asdict(self.first)
        return {**asdict(replace(self, tensors={})), "equal": self.equal, "first": first}

    def save_first(self, path: str | os.PathLike[str]) -> None:
        """Write `tensors` as an .npz file. Raises OptionError if nothing differs, and StorageError."""
        if not self.tensors:
            raise OptionError("no value differs, or its tensors were not asked for: first_difference=True")
        with storage_errors(path, "written"), open(path, "wb") as file:
            np.savez(file, allow_pickle=False, **self.tensors)

    def __repr__(self) -> str:
        return f"<Comparison {self.model!r} {self.summary}>"

    def _repr_html_(self) -> str:
        rows = [(each.name, each.node, each.error, each.problem) for each in (*self.outputs, *self.layers)]
        return table_html(f"{self.model} {self.summary}", ("value", "node", "error", "problem"), rows)


@interruptible
@shows_progress
@takes_imports
def compare(
    source: Any,
    inputs: Mapping[str, object] | None = None,
    *,
    reference: str | None = None,
    target: str | targets.Target = "host",
    sizes: Mapping[str, int] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    layers: bool | None = None,
    first_difference: bool = False,
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> Comparison:
    """Compare a model's outputs with another runtime's, and find the first node that differs.

    Args:
        source: a path to an .onnx file, an `onnx.ModelProto`, or its bytes; or a `torch.nn.Module` with
            `example_inputs`, a `torch.export.ExportedProgram`, or the path of a .pt2 file.
        inputs: by name; the rest is random, or for a PyTorch model taken from the example.
        reference: "onnxruntime", without its optimizations, "onnx", the reference evaluator of the onnx package, or
            "torch"; None: "onnxruntime", or "torch" for PyTorch models, which only support that.
        shapes, constants, target, threads: as in `tensorwright.compile`.
        sizes: sizes of symbolic dimensions, for random inputs; 1 for missing ones.
        tolerance: the largest error allowed, relative to the largest magnitude of the reference.
        layers: whether to compare inner values of the model, too; None: if an output differs.
        first_difference: whether to find the first value that differs, even if the outputs agree, and keep its tensors
            (`Comparison.tensors`, `save_first`). If an output differs but no layer does, models that end with one of
            the values before it are compiled, with the same fusion of nodes, and bisected.
        progress: called with the name of each step as it begins; a bar unless given, and None for nothing.

    Raises:
        OptionError: the reference is unknown, or an option is invalid.
        MissingDependencyError: ONNX Runtime is not installed.
        UserError: importing, compiling or running failed; also if the reference fails.
    """
    report: Callable[[str], None] = progress if progress is not None else automatic
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(f"tolerance={tolerance}", "give a share such as 0.001")
    report("compile")
    options = {**imports, "target": target, "threads": threads, "records": False, "progress": None}
    side = _side(source, reference, inputs or {}, sizes, options)

    def differences(names: Sequence[str]) -> tuple[Difference, ...]:
        ours, theirs = side.ours(names), side.theirs(names)
        return tuple(
            _difference(name, side.nodes.get(name, "model input"), ours[name], theirs[name], tolerance)
            for name in names
            if name in ours
        )

    report(f"run {side.reference}")
    outputs = differences(side.outputs)
    differs = any(each.differs for each in outputs)
    inner: tuple[Difference, ...] = ()
    if layers or first_difference or (layers is None and differs):
        report("compile layer by layer")
        inner = differences(side.values)
    result = Comparison(side.model, side.reference, tolerance, outputs, inner)
    if not first_difference:
        return result
    if result.first is None and differs:
        report("bisect")
        worst = next(each.name for each in outputs if each.differs)
        result = replace(result, fused=_first_fused(side, worst, lambda name: differences([name])[0]))
    return result if result.first is None else replace(result, tensors=_tensors(side, result.first.name))


def _side(
    source: Any,
    reference: str | None,
    inputs: Mapping[str, object],
    sizes: Mapping[str, int] | None,
    options: Mapping[str, Any],
) -> Side:
    torch = sys.modules.get("torch")
    is_file = isinstance(source, str | os.PathLike) and Path(source).suffix == ".pt2"
    is_torch = is_file or (torch is not None and isinstance(source, torch.nn.Module | torch.export.ExportedProgram))
    usual = "torch" if is_torch else "onnxruntime"
    if reference is not None and (reference not in REFERENCES or (reference == "torch") != is_torch):
        known = ("torch",) if is_torch else REFERENCES[:2]
        raise OptionError(f"reference={reference!r}", f"use one of {', '.join(known)}")
    if is_torch:
        if any(options.get(name) for name in ("shapes", "constants", "state", "capacity", "outputs")) or sizes:
            raise OptionError("for a PyTorch model, compare only takes example_inputs and inputs")
        from compiler.inspection.comparing.torch_side import TorchSide  # loads torch

        return TorchSide(source, inputs, options)
    return OnnxSide(source, reference or usual, inputs, sizes, options)


def _first_fused(side: Side, output: str, difference: Callable[[str], Difference]) -> Difference:
    """The first value before an output that differs in a model that ends with it, by bisection: among the values that
    the output depends on, those after the first differing one are assumed to differ, too."""
    needed, waiting = set(), [output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += side.operands.get(name, ())
    values = [name for name in side.values if name in needed] or [output]
    low, high, first_difference = 0, len(values) - 1, difference(values[-1])
    while low < high:
        middle = (low + high) // 2
        tried = difference(values[middle])
        if tried.differs:
            high, first_difference = middle, tried
        else:
            low = middle + 1
    return first_difference


def _tensors(side: Side, name: str) -> dict[str, Array]:
    """Both results of a node, and its operands, from the reference."""
    read = [each for each in side.operands.get(name, ()) if each in side.nodes]
    operands = side.theirs(read) if read else {}
    operands |= {each: side.example[each] for each in side.operands.get(name, ()) if each in side.example}
    ours, theirs = side.ours([name])[name], side.theirs([name])[name]
    return {"ours": ours, "reference": theirs, **{f"operand {key}": array for key, array in operands.items()}}


def _difference(name: str, node: str, ours: Array, theirs: Array, tolerance: float) -> Difference:
    problem, error = "", 0.0
    if ours.shape != theirs.shape:
        problem, error = f"shape {list(ours.shape)}, not {list(theirs.shape)}", math.inf
    elif theirs.size:
        left, right = (np.asarray(each).astype(np.float64) for each in (ours, theirs))
        finite = np.isfinite(right)
        if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(left[finite]).all():
            problem, error = "NaN or infinities at other indices", math.inf
        elif finite.any():
            largest = float(np.abs(right[finite]).max())
            error = float(np.abs(left[finite] - right[finite]).max()) / (largest if largest > 0 else 1.0)
    return Difference(name, node, error, problem, error > tolerance)
