"""The candidates of a task as one shared library, so that nvcc starts once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm

from compiler.codegen.kernel_lowering import PIPELINE
from compiler.tuning.pack.candidates import Candidate
from targets import TargetError

if TYPE_CHECKING:
    import targets


def symbol_of(place: int) -> str:
    """The function of the candidate at a place."""
    return f"kernel_{place}"


def build_library(
    chosen: Sequence[Candidate], target: targets.Target, path: Path
) -> tuple[list[Candidate], dict[Candidate, str]]:
    """Write a library of candidates; a function each, named by its place.

    Returns:
        The candidates in it in their order, and why others are not.

    Raises:
        TargetError: the first one, which is the default, cannot be built.
    """
    try:
        _link(chosen, target, path)
        return list(chosen), {}
    except Exception as error:  # TVM raises whatever its passes raise
        if len(chosen) == 1:
            raise _failed(error) from error
    built: list[Candidate] = []
    problems: dict[Candidate, str] = {}
    for place, each in enumerate(chosen):
        try:
            _link([each], target, path)
            built.append(each)
        except Exception as error:
            if place == 0:
                raise _failed(error) from error
            problems[each] = _words(error)
    _link(built, target, path)
    return built, problems


def _link(chosen: Sequence[Candidate], target: targets.Target, path: Path) -> None:
    functions: dict[str, Any] = {}
    for place, each in enumerate(chosen):
        function = each.function.with_attr("global_symbol", symbol_of(place)).with_attr("tirx.is_scheduled", True)
        functions[symbol_of(place)] = function
    engine_target = target.tvm_target()
    with engine_target:
        library = tvm.tirx.build(tvm.IRModule(functions), engine_target, PIPELINE)
    target.export_library(library, path)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[-300:]


def _failed(error: Exception) -> TargetError:
    return error if isinstance(error, TargetError) else TargetError(f"the default cannot be built: {_words(error)}")
