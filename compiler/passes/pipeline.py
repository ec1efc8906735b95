"""The compilation pipeline: phases in order, each pass timed, dumped and verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import IRModule

import compiler.passes.fuse.ordered_variables  # noqa: F401  (TVM's sets of sizes)
from compiler.errors import OptionError, PassError, TensorwrightError, ToolchainError, storage_errors
from compiler.passes.context import CompilationReport, PipelineContext
from compiler.passes.memory.lift_parameters import lift_constants
from compiler.passes.phases import Phase, phases_of
from compiler.passes.registry import GraphPass, PassLike, as_graph_pass, did_you_mean, is_own
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.expansion import Expansions
from compiler.passes.verify import PassVerifier
from compiler.support.compilation import one_at_a_time
from compiler.support.interrupts import raise_if_interrupted
from targets.errors import TargetError


def build_phases(context: PipelineContext) -> list[Phase]:
    """Return the phases for `context`, in order."""
    target = context.target
    phases = phases_of("processor" if target is None else target.pipeline)
    if target is None:
        return phases
    claims = tuple(as_graph_pass(each) for each in target.partition_passes())
    return [replace(phase, passes=claims) if phase.name == "partition" else phase for phase in phases]


@dataclass(frozen=True)
class PassTiming:
    """One pass of one run. `changed` is False if it returned the module it was given."""

    phase: str
    name: str
    seconds: float
    changed: bool


@dataclass
class PipelineResult:
    """Result of `run_pipeline`.

    Attributes:
        mod: the module, ready for `relax.build(..., relax_pipeline=None)` if every phase ran.
        parameters: trailing parameters of `main` by name, in order (empty unless `lift-parameters` ran).
        expansions: the trailing parameters that the module stores in a smaller form.
        timings: one entry per pass, in order.
        report: the passes' report.
    """

    mod: IRModule
    parameters: dict[str, NDArray[np.generic]]
    expansions: Expansions
    timings: list[PassTiming]
    report: CompilationReport

    def stored_parameters(self) -> dict[str, NDArray[np.generic]]:
        """Return the contents of the module's file: the parameters, the last ones in their smaller form."""
        whole = list(self.parameters.items())[: len(self.parameters) - len(self.expansions.chosen)]
        return {**dict(whole), **self.expansions.stored}

    def seconds(self, phase: str | None = None) -> float:
        """Return the time spent in `phase`, or in all of them."""
        return sum(timing.seconds for timing in self.timings if phase in (None, timing.phase))


@one_at_a_time
def run_pipeline(
    mod: IRModule,
    context: PipelineContext | None = None,
    *,
    passes: Mapping[str, PassLike | None] | None = None,
    until: str | None = None,
    dump: str | Path | None = None,
    verify: bool = False,
    example_inputs: Sequence[NDArray[np.generic]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> PipelineResult:
    """Run the phases over `mod`.

    Args:
        passes: changes to the list: {"before:NAME" | "after:NAME" | "instead-of:NAME": pass}, where NAME is a
            pass or a phase; a pass is a registered name, a `tvm.transform.Pass` or a function of a module.
            "instead-of" with None removes NAME. If NAME occurs more than once, "before" means the first one,
            "after" the last one, and "instead-of" all of them.
        until: the name of the last phase to run; None runs all.
        dump: folder for the module after each pass that changed it, as numbered TVMScript files.
        verify: after each pass that changed the module, build and run it, and compare with the input module.
        example_inputs: the inputs `verify` runs on, in order; None uses random ones.
        progress: called with the name of each phase as it begins.

    Raises:
        OptionError: `passes` or `until` names an unknown pass or phase.
        PassError: a pass failed, or left a module that is not well formed; names the pass.
        VerificationError: `verify` found that a pass changed a result; names the pass.
    """
    context = context if context is not None else PipelineContext()
    phases = _select(build_phases(context), until)
    phases = insert_passes(phases, passes or {})
    observers = _observers(mod, phases, dump, verify, example_inputs, context)
    timings: list[PassTiming] = []
    for phase in phases:
        if progress is not None and phase.passes:
            progress(phase.name)
        unchecked = _Unchecked()
        for position, graph_pass in enumerate(phase.passes):
            old, start = mod, time.perf_counter()
            mod = _run_pass(graph_pass, mod, phase.name, context, unchecked)
            raise_if_interrupted()
            changed = not mod.same_as(old)
            timings.append(PassTiming(phase.name, graph_pass.name, time.perf_counter() - start, changed))
            if changed and observers:
                unchecked.check()
                for observer in observers:
                    observer.after_pass(phase.name, position, graph_pass, mod)
        unchecked.check()
        for observer in observers:
            observer.after_phase()
    return PipelineResult(mod, context.parameters, context.expansions, timings, context.report)


def _observers(
    mod: IRModule,
    phases: Sequence[Phase],
    dump: str | Path | None,
    verify: bool,
    example_inputs: Sequence[NDArray[np.generic]] | None,
    context: PipelineContext,
) -> list[Any]:
    observers: list[Any] = []
    if dump is not None:
        observers.append(ModuleDump(Path(dump), mod))
    if verify:
        observers.append(PassVerifier(mod, phases, context, example_inputs))
    return observers


class _Unchecked:
    """Pass results checked only at the end of a phase, since a check takes as long as many a pass."""

    def __init__(self) -> None:
        self._made: list[tuple[IRModule, str]] = []

    def add(self, mod: IRModule, where: str) -> None:
        self._made.append((mod, where))

    def check(self, *, each: bool = False) -> None:
        """Raise PassError for the first pass whose module is not well formed. Only the last module is checked while it
        is well formed, unless `each` is set."""
        if not self._made:
            return
        try:
            if not each:
                _check_well_formed(*self._made[-1], thorough=False)
        except PassError:
            each = True
        for mod, where in self._made if each else ():
            _check_well_formed(mod, where, thorough=False)


def _run_pass(
    graph_pass: GraphPass, mod: IRModule, phase: str, context: PipelineContext, unchecked: _Unchecked
) -> IRModule:
    """Run one pass, converting its exceptions and invalid modules to a PassError that names it."""
    where = f"pass {graph_pass.name!r} (phase {phase!r})"
    try:
        result = graph_pass(mod, context)
    except TensorwrightError:
        raise
    except TargetError as error:
        raise ToolchainError(error.message, error.hint) from error
    except Exception as error:
        unchecked.check(each=True)
        raise PassError(
            f"{where} failed: {type(error).__name__}: {error}",
            None if graph_pass.required else f"leave the pass out: passes={{'instead-of:{graph_pass.name}': None}}",
        ) from error
    if not isinstance(result, IRModule):
        raise PassError(f"{where} returned {type(result).__name__}, not an IRModule")
    if result.same_as(mod):
        return result
    if is_own(graph_pass):
        unchecked.add(result, where)
    else:
        unchecked.check(each=True)
        _check_well_formed(result, where, thorough=True)
    return result


def _check_well_formed(mod: IRModule, where: str, *, thorough: bool) -> None:
    """Check scopes and structure, and with `thorough` also types, which costs as much as inferring all of them
    again."""
    try:
        relax.analysis.well_formed(mod, thorough)
    except Exception as error:
        raise PassError(f"{where} left a module that is not well formed: {error}") from error


def _select(phases: list[Phase], until: str | None) -> list[Phase]:
    if until is None:
        return phases
    names = [phase.name for phase in phases]
    if until not in names:
        raise OptionError(f"no phase is named {until!r}", did_you_mean(until, names))
    return phases[: names.index(until) + 1]


def insert_passes(phases: list[Phase], changes: Mapping[str, PassLike | None]) -> list[Phase]:
    """Apply the changes of `run_pipeline(passes=...)` to `phases`, in order."""
    for key, candidate in changes.items():
        action, _, name = key.partition(":")
        if action not in ("before", "after", "instead-of") or not name:
            raise OptionError(f"passes= has the key {key!r}", "write 'before:NAME', 'after:NAME' or 'instead-of:NAME'")
        if candidate is None and action != "instead-of":
            raise OptionError(f"passes= has no pass for {key!r}", "give a pass; None only leaves out 'instead-of'")
        added = () if candidate is None else (as_graph_pass(candidate),)
        phases = _change(phases, action, name, added)
    return phases


def _change(phases: list[Phase], action: str, name: str, added: tuple[GraphPass, ...]) -> list[Phase]:
    positions = [
        (row, column)
        for row, phase in enumerate(phases)
        for column, each in enumerate(phase.passes)
        if each.name == name
    ]
    rows = [row for row, phase in enumerate(phases) if phase.name == name]
    if not positions and not rows:
        known = {phase.name for phase in phases} | {each.name for phase in phases for each in phase.passes}
        raise OptionError(f"no pass or phase of the pipeline is named {name!r}", did_you_mean(name, known))
    result = [list(phase.passes) for phase in phases]
    if action == "instead-of":
        for row in rows if not positions else []:
            result[row] = list(added)
        for row, column in reversed(positions):
            result[row][column : column + 1] = added
    elif not positions:
        result[rows[0]] = [*added, *result[rows[0]]] if action == "before" else [*result[rows[0]], *added]
    else:
        row, column = positions[0] if action == "before" else positions[-1]
        position = column if action == "before" else column + 1
        result[row][position:position] = added
    return [Phase(phase.name, tuple(passes)) for phase, passes in zip(phases, result, strict=True)]


_HEADER = """\
# Module after pass {name!r} of phase {phase!r}.
# Constants with dimensions are elided: they are trailing parameters of main, parameter_N by content,
# and the same N is the same constant in every file of this folder.
"""


class ModuleDump:
    """A folder with one numbered file for each pass that changed the module; 00 is the input module. Raises
    StorageError if the folder cannot be created or written."""

    def __init__(self, folder: Path, mod: IRModule) -> None:
        self._folder = folder
        self._count = 0
        self._pool = ConstantPool()
        with storage_errors(folder, "made", "the dump folder "):
            folder.mkdir(parents=True, exist_ok=True)
        self._write("import", "import", mod)

    def after_pass(self, phase: str, _position: int, each: GraphPass, mod: IRModule) -> None:
        """Write `mod`."""
        self._write(phase, each.name, mod)

    def after_phase(self) -> None:
        """Do nothing: each pass has been written."""

    def _write(self, phase: str, name: str, mod: IRModule) -> None:
        path = self._folder / f"{self._count:02d}-{phase}-{name.replace('/', '-')}.py"
        self._count += 1
        lifted, _ = lift_constants(mod, self._pool)
        text = _HEADER.format(name=name, phase=phase) + importable(lifted.script(show_meta=True))
        with storage_errors(path, "written"):
            path.write_text(text, encoding="utf-8")


def importable(script: str) -> str:
    """Return TVMScript as a Python module: the printer comments out the imports."""
    lines = script.splitlines(keepends=True)
    return "".join(line.removeprefix("# ") if line.startswith("# from ") else line for line in lines)
