"""The graph suite: random graphs compute the same numbers as ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from compiler.errors import UserError
from tests.fuzz.outcome import Outcome
from tests.fuzz.random_graphs import difference, random_model, reference


def prepare(folder: Path, target: str = "host") -> str:
    """Return the target: each case makes its own graph."""
    return target


def case(target: str, seed: int) -> Outcome:
    """Compile the graph of a seed and compare each output. A refusal is a gap, not a failure."""
    import compiler

    model, inputs = random_model(seed)
    label = f"{min(len(model.graph.node), 15):2d} nodes"
    expected = reference(model, inputs)
    try:
        outputs = compiler.compile(model, target, threads=1).run(inputs)
    except UserError as error:
        return Outcome("refused", label, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    for name, theirs in zip(outputs, expected, strict=True):
        wrong = difference(outputs[name], theirs)
        if wrong is not None:
            return Outcome("wrong", label, f"output {name}: {wrong}")
    return Outcome("right", label)
