"""Runs a module for another architecture on this machine under the target's emulator."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compiler.artifact import Artifact, TensorDescription, write_artifact
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.tensors import Blob, read_blob
from compiler.device.programs import device_programs
from compiler.errors import IncompatibleArtifactError, InternalError
from compiler.runtime.device import Device
from compiler.runtime.executor import Arrays, Inputs, check_machine
from compiler.runtime.inputs import InputBinder
from compiler.runtime.module import Module
from compiler.runtime.tensors import InputMemory, aligned_copy, array_over, tensor_over, written
from targets import Target

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeModule


class SimulatedDevice(Device):
    """The CPU used instead of a device; `simulator.load` provides the kernels."""

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator

    def load(self, library: bytes | memoryview) -> RuntimeModule:
        return self._simulator.load(library)


class SimulatedModule:
    """A module on a simulated device: correct results, meaningless timings."""

    def __init__(self, artifact: Artifact, simulator: Any) -> None:
        """Compile the kernels for this CPU. Raises targets.TargetError if the compiler is missing, or rejects the
        kernels."""
        self._module = Module(artifact, threads=1, device=SimulatedDevice(simulator))

    def run(self, inputs: Mapping[str, Array], *, threads: int = 1) -> dict[str, Array]:
        """The outputs by name."""
        return self._module.run(inputs)


Array = np.ndarray
_LENGTH = struct.Struct("<Q")


class EmulatedModule:
    """A module file (`file`) and the device's runner; each run is a process of the emulator."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        """Build the runner.

        Raises:
            targets.TargetError: the emulator or the toolchain is missing; the hint installs it.
            MissingDependencyError: the runtime's libraries are not available.
        """
        self._artifact = artifact
        self._emulator = target.emulator()
        self._runner = device_programs(target) / "tensorwright-run"
        folder = tempfile.TemporaryDirectory(prefix="tensorwright-")
        weakref.finalize(self, folder.cleanup)
        self._folder = Path(folder.name)
        self.file = self._folder / "module.twm"
        write_artifact(artifact, self.file)

    def run(self, inputs: Mapping[str, Array], *, threads: int = 1) -> dict[str, Array]:
        """The outputs by name. Raises InternalError if the program failed; the message has its output."""
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._folder) as folder:
            given, results = self.write_inputs(inputs, Path(folder)), Path(folder) / "outputs"
            self.execute(["--inputs", str(given), "--outputs", str(results)], threads=threads)
            return _read_outputs(memoryview(results.read_bytes()), self._artifact.manifest.outputs)

    def execute(self, options: Sequence[str], *, threads: int = 1) -> str:
        """Run the runner with these options and return its output. Raises InternalError."""
        command = self.command((), options)
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment(threads))
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise InternalError(f"the module failed under {Path(command[0]).name} (exit {done.returncode}): {said}")
        return done.stdout

    def write_inputs(self, inputs: Mapping[str, Array], folder: Path) -> Path:
        """Write a file of inputs for the runner into a folder."""
        path = folder / "inputs"
        with path.open("wb") as file:
            file.writelines(Blob(inputs).pieces)
        return path

    def command(self, emulator_options: Sequence[str], options: Sequence[str]) -> list[str]:
        """The command that runs the module's runner with these options."""
        return [*self._emulator, *emulator_options, str(self._runner), str(self.file), *options]

    def environment(self, threads: int) -> dict[str, str]:
        """Environment variables for a run with a number of threads."""
        return {**os.environ, "TVM_NUM_THREADS": str(threads)}


def _read_outputs(blob: memoryview, outputs: Sequence[TensorDescription]) -> dict[str, Array]:
    """Read the tensors of a blob, whose header has the values of dynamic dimensions."""
    (length,) = _LENGTH.unpack(blob[: _LENGTH.size])
    header = json.loads(bytes(blob[_LENGTH.size : _LENGTH.size + length]))
    expected = [
        TensorDescription(name=output.name, shape=tuple(header[output.name]["shape"]), dtype=output.dtype)
        for output in outputs
    ]
    return {name: array.copy() for name, array in read_blob(blob, expected, "outputs").items()}


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
            IncompatibleArtifactError: the target has no emulator; the message names what this machine lacks.
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
        """Emulator that runs the module here, created on first use."""
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
