"""Lists of targets and passes for display."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import targets
from compiler.support.cache import conformance_file

# Instructions that determine a target's kernels, newest first.
_NOTABLE = ("avx512bf16", "avx512vnni", "avxvnni", "avx512f", "avx2", "amx-tile", "dotprod", "i8mm", "fullfp16", "sve")


@dataclass(frozen=True)
class TargetEntry:
    """A target; `device` computes in addition to the processor, `missing` are the instructions that this machine lacks
    to run its code, `cores` is the default number of cores to schedule for (changed by NAME:CORES, up to `most_cores`
    if known), `toolchain` builds for it (None: not installed; `install` is the command), `runs` is how its modules run
    here, `conformance` the last result of its suite (None: not run here)."""

    name: str
    description: str
    device: str
    architecture: str
    vector_bits: int
    cores: int
    most_cores: int | None
    features: tuple[str, ...]
    notable: tuple[str, ...]
    missing: tuple[str, ...]
    toolchain: str | None
    install: str | None
    runs: str
    conformance: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PassEntry:
    """A pass at its position in the pipeline, counted from 1; None for a pass outside the pipeline."""

    phase: str
    position: int | None
    name: str
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def list_targets() -> tuple[list[TargetEntry], list[str]]:
    """Every target, this machine's first; and the problems of targets in other packages that cannot be loaded."""
    entries, problems = [], []
    for name in sorted(targets.names(), key=lambda name: (name != "host", name)):
        try:
            entries.append(_target_entry(targets.get(name)))
        except targets.RegistrationError as error:
            problems.append(f"{error.message}; {error.hint}")
    return entries, problems


def _target_entry(target: targets.Target) -> TargetEntry:
    features = tuple(sorted(target.machine.features))
    toolchain, install = _toolchain(target)
    return TargetEntry(
        name=target.name,
        description=target.description,
        device=target.device,
        architecture=target.architecture,
        vector_bits=target.machine.vector_bits,
        cores=target.machine.cores,
        most_cores=target.most_cores,
        features=features,
        notable=tuple(name for name in _NOTABLE if name in features),
        missing=target.missing_features(),
        toolchain=toolchain,
        install=install,
        runs=target.how_it_runs(),
        conformance=_conformance(target.name),
    )


def _conformance(name: str) -> str | None:
    try:
        kept = json.loads(conformance_file(name).read_text(encoding="utf-8"))
        return f"{kept['passed']} of {kept['checks']}"
    except (OSError, ValueError, KeyError):
        return None


def _toolchain(target: targets.Target) -> tuple[str | None, str | None]:
    """Toolchain of a target, or the command that installs it."""
    try:
        return target.toolchain(), None
    except targets.ToolchainMissing as error:
        return None, error.hint or error.message


def list_passes() -> list[PassEntry]:
    """The passes in execution order, some at several positions; then those that only run on request."""
    from compiler.passes.context import PipelineContext
    from compiler.passes.pipeline import build_phases
    from compiler.passes.registry import all_passes

    entries: list[PassEntry] = []
    for phase in build_phases(PipelineContext()):
        for pipeline_pass in phase.passes:
            entries.append(PassEntry(phase.name, len(entries) + 1, pipeline_pass.name, pipeline_pass.summary))
    used = {entry.name for entry in entries}
    rest = [each for name, each in all_passes().items() if name not in used]
    return entries + [PassEntry("(on request)", None, each.name, each.summary) for each in rest]
