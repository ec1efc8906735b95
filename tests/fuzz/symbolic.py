"""The symbolic suite: random graphs with symbolic sizes compute ONNX Runtime's numbers at several sizes.

ONNX Runtime runs with its optimizations off. Where it refuses inputs, or differs where NaN and infinities are among
them, onnx's reference implementation is asked too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.errors import InternalError, UserError
from tests.coverage.files_table import lost_sizes
from tests.fuzz import symbolic_control, symbolic_networks, symbolic_shapes  # noqa: F401  (they register templates)
from tests.fuzz.forked import call_forked
from tests.fuzz.minimize import minimized
from tests.fuzz.outcome import Outcome
from tests.fuzz.random_graphs import difference
from tests.fuzz.symbolic_builder import SYMBOLS, Dim, SymbolicBuilder
from tests.fuzz.symbolic_operators import TEMPLATES

Arrays = list[NDArray[Any]]
Feeds = dict[str, NDArray[Any]]
RUNS = 4
# Worst first: a graph's outcome is that of its worst run.
_ORDER = ("wrong", "exception", "refused", "right", "unchecked", "agreed")


def prepare(folder: Path) -> None:
    """Do nothing: each case makes its own graph."""


def symbolic_model(seed: int) -> tuple[onnx.ModelProto, list[Feeds]]:
    """A model of 1 to 12 templates, and inputs of several sizes; deterministic for a seed."""
    build = SymbolicBuilder(np.random.default_rng(seed))
    build.special = build.chance(0.25)
    for _ in range(build.integer(1, 3)):
        build.add_input(tuple(_dim(build) for _ in range(build.integer(1, 3))))
    if build.chance():
        build.add_input((build.choice([1, "n"]), build.choice([1, 3, 4, 16]), *("m", "k")[: build.integer(1, 2)]))
    wanted = build.integer(1, 12)
    for _ in range(200):
        made = sum(len(body.nodes) for body in build.bodies)
        if made >= wanted:
            break
        build.choice(TEMPLATES)(build)
    return build.model(), [build.feeds() for _ in range(RUNS)]


def _dim(build: SymbolicBuilder) -> Dim:
    return build.choice(SYMBOLS) if build.chance(0.6) else build.integer(1, 8)


def case(_: None, seed: int) -> Outcome:
    """Compile the graph of a seed, run it at several sizes, and report a minimized graph for a failure."""
    model, runs = symbolic_model(seed)
    outcome = judged(model, runs)
    if outcome.kind not in ("wrong", "exception"):
        return outcome

    def fails_alike(smaller: onnx.ModelProto) -> bool:
        found = judged(smaller, runs)
        return found.kind == outcome.kind and _cause(found) == _cause(outcome)

    small = minimized(model, fails_alike)
    return Outcome(outcome.kind, outcome.label, f"{outcome.detail}\n{onnx.printer.to_text(small.graph)}")


def _cause(outcome: Outcome) -> str:
    """Key of a failure: the class of an exception; NaN and shape errors are distinct from wrong numbers."""
    return outcome.detail.partition(":")[0] if outcome.kind == "exception" else outcome.detail.partition("|")[0]


def judged(model: onnx.ModelProto, runs: list[Feeds]) -> Outcome:
    """The outcome of a model's worst run."""
    import compiler

    session = _session(model)
    try:
        module = compiler.compile(model, threads=1)
    except InternalError as error:
        return Outcome("exception", "compile", f"{type(error).__name__}: {error}")
    except UserError as error:
        return Outcome("agreed" if session is None else "refused", "compile", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", "compile", f"{type(error).__name__}: {error}")
    declared = {each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
                for each in model.graph.input}  # fmt: skip
    if lost := lost_sizes(module.inputs, declared):
        return Outcome("wrong", "lost size", lost)
    wanted = set(declared)
    found = [_run(module, session, model, {k: v for k, v in feeds.items() if k in wanted}) for feeds in runs]
    return min(found, key=lambda outcome: _ORDER.index(outcome.kind))


def _run(module: Any, session: Any, model: onnx.ModelProto, feeds: Feeds) -> Outcome:
    label = "special" if any(not np.isfinite(v).all() for v in feeds.values() if v.dtype.kind == "f") else "finite"
    sizes = {name: list(array.shape) for name, array in feeds.items()}
    expected = _expected(session, feeds)
    try:
        outputs = list(module.run(dict(feeds)).values())
    except InternalError as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error} at {sizes}")
    except UserError as error:
        return Outcome(
            "agreed" if expected is None else "refused", label, f"{type(error).__name__}: {error} at {sizes}"
        )
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error} at {sizes}")
    wrong = None if expected is None else _difference(outputs, expected)
    if expected is not None and wrong is None:
        return Outcome("right", label)
    second = _reference(model, feeds)
    if second is None:
        checked = expected is not None and label == "finite"
    elif _is_either(outputs, expected or second, second):
        return Outcome("right", label)
    else:
        checked = expected is not None
    if not checked:
        return Outcome("unchecked", label)
    return Outcome("wrong", label, f"{wrong} at {sizes}")


def _session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime's session, or None if it refuses the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


def _expected(session: Any, feeds: Feeds) -> Arrays | None:
    """ONNX Runtime's outputs, or None if it refuses the inputs or crashes.

    In a separate process: its ConvTranspose and InstanceNormalization, among others, access memory next to empty
    tensors.
    """
    if session is None:
        return None
    wanted = {each.name for each in session.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in wanted}
    found: Arrays | None = call_forked(lambda: session.run(None, given))
    return found


def _reference(model: onnx.ModelProto, feeds: Feeds) -> Arrays | None:
    """Outputs of onnx's reference implementation, or None if it fails."""
    from onnx.reference import ReferenceEvaluator

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results: Any = ReferenceEvaluator(model).run(None, feeds)
    except Exception:
        return None
    return [np.asarray(each) for each in results]


def _is_either(ours: Arrays, theirs: Arrays, others: Arrays) -> bool:
    """True if each output equals one of the references': they differ in operators on NaN."""
    return all(
        _difference([one], [other]) is None or _difference([one], [another]) is None
        for one, other, another in zip(ours, theirs, others, strict=True)
    )


def _difference(ours: Arrays, theirs: Arrays) -> str | None:
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.size == other.size == 0 and one.ndim == other.ndim:
            continue  # runtimes disagree on sizes next to an empty axis, as in scan outputs of loops without iterations
        wrong = difference(one, other)
        if wrong is not None:
            kind = wrong if not wrong.startswith("relative") else "other numbers"
            return f"{kind if one.shape == other.shape else 'another shape'}| output {place}: {wrong}"
    return None
