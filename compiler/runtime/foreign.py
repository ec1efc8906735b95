"""A module for another machine: looked at, signed and exported here, and run there, or here under an emulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from compiler.artifact import Artifact
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import IncompatibleArtifactError
from compiler.runtime.inputs import InputBinder, Staging
from compiler.runtime.machine import check_machine
from compiler.runtime.module import Module, OutputKind
from compiler.runtime.tensors import aligned_copy, array_over, tensor_over


class Emulator(Protocol):
    """Runs a module that this machine can not run itself."""

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]], *, threads: int = 1) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name."""


class ForeignModule(Module):
    """What `compile` returns for a target that this machine can not run by itself."""

    def __init__(self, artifact: Artifact, emulate: Callable[[Artifact], Emulator] | None = None) -> None:
        """`emulate` makes what runs it here; it is called at the first run, and raises where that is not possible."""
        self._artifact = artifact
        self.threads = None  # the module's own setting, as far as this machine has processors
        self._emulate = emulate
        self._emulator: Emulator | None = None

    def run(self, inputs: Mapping[str, Any] | Sequence[Any], *, outputs: OutputKind = "numpy") -> dict[str, Any]:
        """Run the model once under the target's emulator, which is slow. See `Module.run`.

        Raises:
            IncompatibleArtifactError: the target has no emulator; the message says what this machine lacks.
            ToolchainError: its emulator or its compiler is not installed; the hint installs it.
        """
        given = self._checked(inputs)
        results = self._emulated().run(given, threads=self.threads)
        if outputs == "numpy":
            return results
        elements = {output.name: ELEMENT_TYPES[output.dtype] for output in self.outputs}
        return {
            name: tensor_over(aligned_copy(value, elements[name]), elements[name]) for name, value in results.items()
        }

    def _emulated(self) -> Emulator:
        """What runs the module here, made when first asked for."""
        if self._emulate is None:
            check_machine(self._artifact.manifest)
            raise IncompatibleArtifactError(
                f"the module was built for {self._artifact.manifest.target.name!r} and does not run on this machine",
                "export it and load it there",
            )
        if self._emulator is None:
            self._emulator = self._emulate(self._artifact)
        return self._emulator

    def _checked(self, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The inputs as arrays by name, checked as `Module` checks them."""
        manifest = self._artifact.manifest
        binder = InputBinder(manifest.inputs, manifest.requirements, manifest.indices)
        tensors = binder.bind(inputs, [Staging() for _ in binder.specs])
        return {
            spec.name: array_over(tensor, spec.element).copy()
            for spec, tensor in zip(binder.specs, tensors, strict=True)
        }
