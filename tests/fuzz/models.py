"""The model suite: broken and hostile ONNX files are refused with one error, or compile and run."""

from __future__ import annotations

from pathlib import Path

from compiler.errors import UserError
from tests.fuzz.model_mutations import mutated_model
from tests.fuzz.outcome import Outcome


def prepare(folder: Path) -> None:
    """Do nothing: each case creates its own file."""


def case(_: None, seed: int) -> Outcome:
    """Compile a broken file and run the module, if any. An InternalError is a defect too."""
    import compiler
    from compiler.runtime.random_inputs import random_inputs

    label, data = mutated_model(seed)
    # One row per kind of damage; files with several count under the first.
    label = label.partition("+")[0]
    try:
        module = compiler.compile(data, threads=1)
        module.run(random_inputs(module.inputs))
    except UserError as error:
        return Outcome("refused", label, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    return Outcome("right", label)
