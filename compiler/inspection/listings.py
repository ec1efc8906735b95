"""Targets and passes as lists to show."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import targets
from compiler.support.cache import conformance_file

# Instructions that decide which kernels a target gets, newest first.
_NOTABLE = ("avx512bf16", "avx512vnni", "avxvnni", "avx512f", "avx2", "amx-tile", "dotprod", "i8mm", "fullfp16", "sve")


@dataclass(frozen=True)
class TargetEntry:
    """A target; `device` is what computes beside the processor, `missing` the instructions that this machine lacks to
    run its code, `cores` what modules are scheduled for unless the name says (NAME:CORES, up to `most_cores` where
    that is known), `toolchain` what builds for it (None: not installed; `install` says how to), `runs` how its modules
    run here, `conformance` the last result of its suite (None: not run here)."""

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
    """A pass at its place; `position` counts from 1, None for one that is not in the pipeline."""

    phase: str
    position: int | None
    name: str
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def list_targets() -> tuple[list[TargetEntry], list[str]]:
    """Every target, this machine's first; and what is wrong with those of other packages that cannot be loaded."""
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
    """Toolchain of a target, or how to install it."""
    try:
        return target.toolchain(), None
    except targets.ToolchainMissing as error:
        return None, error.hint or error.message


def list_passes() -> list[PassEntry]:
    """The passes in the order they run, some at several places; then those that run on request only."""
    from compiler.passes.context import PipelineContext
    from compiler.passes.pipeline import build_phases
    from compiler.passes.registry import all_passes

    entries: list[PassEntry] = []
    for phase in build_phases(PipelineContext()):
        for each in phase.passes:
            entries.append(PassEntry(phase.name, len(entries) + 1, each.name, each.summary))
    used = {entry.name for entry in entries}
    rest = [each for name, each in all_passes().items() if name not in used]
    return entries + [PassEntry("(on request)", None, each.name, each.summary) for each in rest]
