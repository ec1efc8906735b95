"""What runs a module: on this machine, or (`compiler.runtime.emulated`) under an emulator of another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from compiler.artifact import Artifact
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError
from compiler.runtime.accelerator import load_accelerator
from compiler.runtime.device import Device, device_for
from compiler.runtime.failures import engine_error
from compiler.runtime.inputs import InputBinder, Staging
from compiler.runtime.library import bound_main, check_arity, check_elf, check_parameters, expand_parameters
from compiler.runtime.machine import check_machine
from compiler.runtime.outputs import OutputReader
from compiler.runtime.tensors import aligned_copy, is_usable, tensor_over
from compiler.runtime.threads import in_force, run_with
from targets import cpuinfo

Inputs = Mapping[str, Any] | Sequence[Any]


class Executor(Protocol):
    """Runs one module's code. Safe to use from several threads at once."""

    def run(self, inputs: Inputs, threads: int, *, as_numpy: bool) -> dict[str, Any]:
        """The outputs by name: arrays, or tensors that support DLPack. See `Module.run`."""

    def prepare(self, inputs: Inputs) -> tuple[Any, Callable[[], Any]]:
        """Inputs bound to a virtual machine of their own. See `Module.prepare`."""


class _Session:
    """A virtual machine with its own memory for inputs: what one run needs for itself."""

    __slots__ = ("machine", "main", "placed", "staging")

    def __init__(self, machine: Any, parameters: Sequence[Any], inputs: int) -> None:
        self.machine = machine
        check_arity(self.machine, inputs + len(parameters))
        self.main = bound_main(self.machine, parameters)
        self.staging = [Staging() for _ in range(inputs)]
        self.placed: list[Any] = [None] * inputs  # see `Device.place`


class LocalExecutor:
    """Runs a module on this machine's processor, or on a device beside it.

    Each run takes a virtual machine of its own; all share the parameters.
    """

    def __init__(self, artifact: Artifact, threads: int, device: Device | None = None) -> None:
        """Load the code, and place the parameters; those stored in a smaller form are expanded by `threads` threads.

        Raises:
            IncompatibleArtifactError: this machine cannot run it; the message names what is missing.
            ArtifactError: its machine code could not be loaded.
        """
        manifest = artifact.manifest
        check_machine(manifest)
        check_elf(artifact.library, cpuinfo.architecture())
        load_accelerator(manifest)
        self._device = device_for(manifest) if device is None else device
        self._executable = self._device.load(artifact.library)
        arrays, stored = _usable_parameters(artifact)
        placed = [self._device.to_device(each) for each in stored]
        self._parameters = self._expanded(placed, manifest.compact_parameters, threads)
        self._binder = InputBinder(manifest.inputs, manifest.requirements, manifest.indices)
        self._reader = OutputReader(manifest.outputs, arrays)
        # Taking from and adding to a list's end are atomic.
        self._idle: list[_Session] = [self._new_session()]
        check_parameters(self._idle[0].machine, self._parameters)

    def _expanded(self, stored: list[Any], compact: int, threads: int) -> list[Any]:
        """The parameters as `main` takes them: the last `compact` ones of those that are stored, expanded."""
        if not compact:
            return stored
        machine = self._device.virtual_machine(self._executable)
        whole, small = stored[:-compact], stored[-compact:]
        return [*whole, *run_with(threads, lambda: expand_parameters(machine, small))]

    def run(self, inputs: Inputs, threads: int, *, as_numpy: bool) -> dict[str, Any]:
        if in_force(threads):
            return self._run(inputs, as_numpy)
        return run_with(threads, lambda: self._run(inputs, as_numpy))

    def _run(self, inputs: Inputs, as_numpy: bool) -> dict[str, Any]:
        try:
            session = self._idle.pop()
        except IndexError:
            session = self._new_session()
        try:
            tensors = self._binder.bind(inputs, session.staging)
        except InputError:
            self._idle.append(session)
            raise
        try:
            placed = self._device.place(tensors, session.placed)
            results = self._device.to_host(self._device.call(session.main, placed))
        except Exception as error:  # TVM raises whatever class its C++ side names
            # The session is dropped with its virtual machine, whose state after an error is nobody's promise.
            raise engine_error(error, len(tensors)) from error
        named = self._reader.read(results, tensors, as_numpy)
        self._idle.append(session)
        return named

    def prepare(self, inputs: Inputs) -> tuple[Any, Callable[[], Any]]:
        session = self._new_session()
        tensors = [self._device.to_device(each) for each in self._binder.bind(inputs, session.staging)]

        def run() -> Any:
            _ = session, inputs  # the tensors lie in memory that these hold
            return self._device.call(session.main, tensors)

        return session.machine, run

    def _new_session(self) -> _Session:
        return _Session(self._device.virtual_machine(self._executable), self._parameters, len(self._binder.specs))


def _usable_parameters(artifact: Artifact) -> tuple[list[np.ndarray[Any, Any]], list[Any]]:
    """The stored parameters as arrays and as tensors, copied only where generated code could not read them in place."""
    elements = [ELEMENT_TYPES[tensor.dtype] for tensor in artifact.manifest.parameters]
    arrays = [
        array if is_usable(array) else aligned_copy(array, element)
        for array, element in zip(artifact.parameters.values(), elements, strict=True)
    ]
    return arrays, [tensor_over(*pair) for pair in zip(arrays, elements, strict=True)]
