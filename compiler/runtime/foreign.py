"""A module for another machine: it can be looked at, signed and exported here, and run there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.artifact import Artifact
from compiler.errors import IncompatibleArtifactError
from compiler.runtime.machine import check_machine
from compiler.runtime.module import Module, OutputKind


class ForeignModule(Module):
    """What `compile` returns for a target that this machine can not run. `run` says what is missing."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.threads = artifact.manifest.threads

    def run(self, inputs: Mapping[str, Any] | Sequence[Any], *, outputs: OutputKind = "numpy") -> dict[str, Any]:
        """Raises IncompatibleArtifactError, always."""
        check_machine(self._artifact.manifest)
        raise IncompatibleArtifactError(
            f"the module was built for {self._artifact.manifest.target.name!r} and does not run on this machine",
            "export it and load it there",
        )
