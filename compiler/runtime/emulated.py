"""Runs a module compiled for another architecture under an emulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from compiler.artifact import Artifact
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import IncompatibleArtifactError
from compiler.runtime.executor import Arrays, Inputs, check_machine
from compiler.runtime.inputs import InputBinder
from compiler.runtime.tensors import InputMemory, aligned_copy, array_over, tensor_over, written

Array = np.ndarray


class Emulator(Protocol):
    """Runs a module that this machine cannot run natively."""

    def run(self, inputs: Mapping[str, Array], *, threads: int = 1) -> dict[str, Array]:
        """The outputs by name."""


class EmulatedExecutor:
    """Runs a module under its target's emulator (slow), with the usual checks of inputs."""

    def __init__(self, artifact: Artifact, emulate: Callable[[Artifact], Emulator] | None = None) -> None:
        """`emulate` creates the emulated runner at the first run; it raises if that is not possible."""
        self._artifact = artifact
        self._emulate = emulate
        self._emulator: Emulator | None = None

    def run(self, inputs: Inputs, threads: int, *, as_numpy: bool = True, out: Arrays | None = None) -> dict[str, Any]:
        """The outputs.

        Raises:
            IncompatibleArtifactError: the target has no emulator; the message says what this machine lacks.
            ToolchainError: its emulator or its compiler is not installed; the hint installs it.
        """
        given = self._checked(inputs)
        results = self._emulated().run(given, threads=threads)
        if as_numpy:
            return results if out is None else written(results, out)
        elements = {output.name: ELEMENT_TYPES[output.dtype] for output in self._artifact.manifest.outputs}
        return {
            name: tensor_over(aligned_copy(value, elements[name]), elements[name]) for name, value in results.items()
        }

    def prepare(self, inputs: Inputs) -> tuple[Any, Callable[[], Any]]:
        """Always raises IncompatibleArtifactError: timings under an emulator are meaningless."""
        raise IncompatibleArtifactError(
            f"the module was built for {self._artifact.manifest.target.name!r}, "
            "and timings under an emulator are meaningless",
            "profile or bench it on the device: --device HOST:PORT, with a server from `tensorwright bundle`",
        )

    def hold(self, states: Mapping[str, Array]) -> dict[str, Any]:
        return {name: array.copy() for name, array in states.items()}

    def step(
        self, inputs: Mapping[str, object], held: dict[str, Any], threads: int, *, as_numpy: bool
    ) -> dict[str, Any]:
        results = self.run({**inputs, **held}, threads, as_numpy=as_numpy)
        for state in self._artifact.manifest.states:
            held[state.input] = np.asarray(results.pop(state.output))
        return results

    def read(self, held: Mapping[str, Any]) -> dict[str, Array]:
        return {name: array.copy() for name, array in held.items()}

    def changed(self, held: dict[str, Any], change: Callable[[str, Array], None]) -> dict[str, Any]:
        for name, array in held.items():
            change(name, array)
        return held

    def _emulated(self) -> Emulator:
        """Emulator that runs the module here, made when first asked for."""
        if self._emulate is None:
            check_machine(self._artifact.manifest)
            raise IncompatibleArtifactError(
                f"the module was built for {self._artifact.manifest.target.name!r} and does not run on this machine",
                "export it and load it there",
            )
        if self._emulator is None:
            self._emulator = self._emulate(self._artifact)
        return self._emulator

    def _checked(self, inputs: Inputs) -> dict[str, Array]:
        """The inputs as arrays by name."""
        manifest = self._artifact.manifest
        binder = InputBinder(manifest.inputs, manifest.requirements, manifest.indices)
        tensors = binder.bind(inputs, InputMemory(len(binder.specs)))
        return {
            spec.name: array_over(tensor, spec.element).copy()
            for spec, tensor in zip(binder.specs, tensors, strict=True)
        }
