"""`Module`: a compiled model, ready to run, and the door through which files become one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import numpy as np

from compiler.artifact import Artifact, Key, Manifest, TensorDescription, read_artifact, write_artifact
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError, OptionError, VerificationError
from compiler.notebook import facts_html, shortened
from compiler.runtime.accelerator import load_accelerator
from compiler.runtime.device import Device, device_for
from compiler.runtime.failures import engine_error
from compiler.runtime.inputs import InputBinder, Staging
from compiler.runtime.library import (
    bound_main,
    check_arity,
    check_elf,
    check_parameters,
    expand_parameters,
)
from compiler.runtime.machine import check_machine
from compiler.runtime.outputs import OutputReader
from compiler.runtime.tensors import aligned_copy, is_usable, tensor_over
from compiler.runtime.threads import in_force, run_with, threads_here
from compiler.runtime.verification import compare
from targets import cpuinfo

Array = np.ndarray[Any, Any]
OutputKind = Literal["numpy", "dlpack"]


class _Session:
    """A virtual machine with its own memory for inputs: what one run needs for itself."""

    __slots__ = ("machine", "main", "placed", "staging")

    def __init__(self, machine: Any, parameters: Sequence[Any], inputs: int) -> None:
        self.machine = machine
        check_arity(self.machine, inputs + len(parameters))
        self.main = bound_main(self.machine, parameters)
        self.staging = [Staging() for _ in range(inputs)]
        self.placed: list[Any] = [None] * inputs  # see `Device.place`


class Module:
    """A compiled model.

    Safe to run from several threads at once: each run takes a virtual machine of its own, and all share the parameters.
    After `os.fork` the child can go on using it. It can not be pickled: processes load the file, and share its pages.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None, device: Device | None = None) -> None:
        """Make a module ready.

        Args:
            artifact: what `compile` made or `read_artifact` read.
            threads: how many threads a run uses; None: the artifact's setting, bounded by this machine's processors,
                else `default_threads()`.
            device: where its kernels run; None: the device that it was compiled for.

        Raises:
            IncompatibleArtifactError: this machine can not run it; the message names what is missing.
            ArtifactError: its machine code could not be loaded.
            OptionError: `threads` is not a number of threads, or more than this machine serves.
        """
        check_machine(artifact.manifest)
        check_elf(artifact.library, cpuinfo.architecture())
        load_accelerator(artifact.manifest)
        self._artifact = artifact
        self.threads = threads
        self._device = device_for(artifact.manifest) if device is None else device
        self._executable = self._device.load(artifact.library)
        # Copied only where generated code could not read them in place.
        elements = [ELEMENT_TYPES[tensor.dtype] for tensor in artifact.manifest.parameters]
        arrays = [
            array if is_usable(array) else aligned_copy(array, element)
            for array, element in zip(artifact.parameters.values(), elements, strict=True)
        ]
        stored = [tensor_over(*pair) for pair in zip(arrays, elements, strict=True)]
        placed = [self._device.to_device(each) for each in stored]
        self._parameters = self._expanded(placed, artifact.manifest.compact_parameters)
        manifest = artifact.manifest
        self._binder = InputBinder(manifest.inputs, manifest.requirements, manifest.indices)
        self._reader = OutputReader(artifact.manifest.outputs, arrays)
        # Taking from and adding to a list's end are atomic.
        self._idle: list[_Session] = [self._new_session()]
        check_parameters(self._idle[0].machine, self._parameters)

    def _expanded(self, stored: list[Any], compact: int) -> list[Any]:
        """The parameters as `main` takes them: the last `compact` ones of those that are stored, expanded."""
        if not compact:
            return stored
        machine = self._device.virtual_machine(self._executable)
        whole, small = stored[:-compact], stored[-compact:]
        return [*whole, *run_with(self._threads, lambda: expand_parameters(machine, small))]

    def run(self, inputs: Mapping[str, Any] | Sequence[Any], *, outputs: OutputKind = "numpy") -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: by name, or in order: numpy arrays, or any tensors that speak DLPack. Element types must match
                exactly. Memory is used in place where it is compact and 64-byte aligned, and copied otherwise.
            outputs: "numpy" for arrays; "dlpack" for tensors that `torch.from_dlpack` and the like take over.

        Returns:
            The outputs by name; their memory is the caller's, and nothing that the module holds.

        Raises:
            InputError: names, ranks, shapes, dimensions or element types do not fit, or a check inside of the model
                failed; the message names the node.
            InternalError: the engine failed.
        """
        if outputs not in ("numpy", "dlpack"):
            raise OptionError(f"outputs must be 'numpy' or 'dlpack', not {outputs!r}")
        if in_force(self._threads):
            return self._run(inputs, outputs == "numpy")
        return run_with(self._threads, lambda: self._run(inputs, outputs == "numpy"))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model once on inputs in order, by name, or the first ones in order and the rest by name.

        Returns:
            The output as a numpy array where there is one, else a dictionary of them by name.

        Raises:
            InputError: as `run` does; an input is given twice, or there are more than the module takes.
        """
        given = dict(zip((spec.name for spec in self.inputs), inputs, strict=False))
        twice = sorted(set(given) & set(named))
        if len(inputs) > len(self.inputs) or twice:
            problem = f"input {twice[0]!r} is given twice" if twice else f"{len(inputs)} inputs were given"
            raise InputError(problem, "the module takes " + ("; ".join(map(str, self.inputs)) or "no inputs"))
        outputs = self.run({**given, **named})
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _run(self, inputs: Any, as_numpy: bool) -> dict[str, Any]:
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
        except Exception as error:  # the engine raises whatever class its C++ side names
            # The session is dropped with its virtual machine, whose state after an error is nobody's promise.
            raise engine_error(error, len(tensors)) from error
        named = self._reader.read(results, tensors, as_numpy)
        self._idle.append(session)
        return named

    def prepare(self, inputs: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, Callable[[], Any]]:
        """Bind inputs to a virtual machine of their own; for measuring, as a run then is the model and nothing else.

        Returns:
            The machine, and a function that runs it on these inputs; kernels use the threads of the calling thread's
            setting (`compiler.runtime.threads.run_with`).

        Raises:
            InputError: as `run` does.
        """
        session = self._new_session()
        tensors = [self._device.to_device(each) for each in self._binder.bind(inputs, session.staging)]

        def run() -> Any:
            _ = session, inputs  # the tensors lie in memory that these hold
            return self._device.call(session.main, tensors)

        return session.machine, run

    def _new_session(self) -> _Session:
        return _Session(self._device.virtual_machine(self._executable), self._parameters, len(self._binder.specs))

    def verify(self) -> dict[str, float]:
        """Run the stored reference input and compare with the stored outputs.

        Returns:
            The largest absolute difference of each output.

        Raises:
            VerificationError: an output differs by more than the manifest's tolerance, or there is no reference.
        """
        artifact = self._artifact
        if not artifact.reference_outputs:
            raise VerificationError("the module holds no reference to compare with", "compile it with example inputs")
        actual = self.run(artifact.reference_inputs)
        return compare(actual, artifact.reference_outputs, artifact.manifest.reference_tolerance)

    def with_reference(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Module:
        """The same module, sharing code and parameters, with another stored example of inputs and outputs."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._artifact = self._artifact.with_reference(inputs, outputs)
        return other

    def export(self, path: str | os.PathLike[str], *, sign_key: Key | None = None) -> None:
        """Write the module as one file, whole or not at all; signed when an Ed25519 private key is given.

        Raises:
            StorageError: the file can not be written; nothing is left behind.
            OptionError: `sign_key` is not a key.
        """
        write_artifact(self._artifact, path, sign_key)

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """Names, shapes (symbolic dimensions by name) and element types of what `run` takes."""
        return self._artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        """Names, shapes and element types of what `run` gives."""
        return self._artifact.manifest.outputs

    @property
    def manifest(self) -> Manifest:
        """What the module says of itself."""
        return self._artifact.manifest

    @property
    def artifact(self) -> Artifact:
        """The module's contents, as `export` writes them."""
        return self._artifact

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The model's numbers by name; read-only."""
        views = {name: array.view() for name, array in self._artifact.parameters.items()}
        for view in views.values():
            view.flags.writeable = False
        return MappingProxyType(views)

    @property
    def threads(self) -> int:
        """How many threads a run uses; set it to change that for later runs (None: the module's own setting)."""
        return self._threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        self._threads = threads_here(value, self._artifact.manifest.threads)

    def __reduce__(self) -> NoReturn:
        raise OptionError(
            "a Module can not be pickled: it holds machine code",
            "export it to a file, and load that file in each process",
        )

    def __repr__(self) -> str:
        manifest = self.manifest
        inputs, outputs = (shortened(tensors, separator="; ") for tensors in (manifest.inputs, manifest.outputs))
        return f"<Module {manifest.model_name!r} ({inputs}) -> ({outputs}), target {manifest.target.name!r}>"

    def _repr_html_(self) -> str:
        manifest = self.manifest
        code, parameters = len(self._artifact.library), sum(each.nbytes for each in manifest.parameters)
        facts = [
            ("inputs", "\n".join(map(str, manifest.inputs)) or "none"),
            ("outputs", "\n".join(map(str, manifest.outputs))),
            ("target", f"{manifest.target.name}, {self.threads} thread(s)"),
            ("size", f"code {code / 1e6:.2f} MB, parameters {parameters / 1e6:.2f} MB"),
        ]
        return facts_html(f"Module {manifest.model_name}", facts)


def load(
    source: str | os.PathLike[str] | bytes,
    *,
    threads: int | None = None,
    trusted_keys: Sequence[Key] | None = None,
    verify: bool = False,
) -> Module:
    """Load a module, every byte of it checked before any of it is used.

    Args:
        source: the path of a `.twm` file, or its bytes.
        threads: how many threads a run uses; None: the module's own setting.
        trusted_keys: Ed25519 public keys (32 raw bytes, or paths of PEM files or folders): a valid signature by one is
            required, and the file is read into private memory. Without, the file is mapped, and must not be changed
            in place while the module is in use.
        verify: also run the stored reference input and compare (`Module.verify`).

    Raises:
        StorageError, ArtifactError, IncompatibleArtifactError, SignatureError: as `read_artifact` and `Module` say.
        VerificationError: `verify` was asked for, and an output differs or there is no reference.
    """
    module = Module(read_artifact(source, trusted_keys), threads=threads)
    if verify:
        module.verify()
    return module
