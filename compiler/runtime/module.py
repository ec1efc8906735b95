"""`Module`: a compiled model, ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np

from compiler.artifact import Artifact, Key, Manifest, TensorDescription, write_artifact
from compiler.artifact.fields import FieldError, decode
from compiler.artifact.language_model import DESCRIPTION_ASSET, LanguageModelDescription
from compiler.errors import ArtifactError, InputError, OptionError, VerificationError
from compiler.reports.formatting import plural
from compiler.runtime.device import Device
from compiler.runtime.executor import Executor, LocalExecutor, check_machine
from compiler.runtime.prediction import Given, Prediction, Ranking, predict, rank
from compiler.runtime.session import Session
from compiler.runtime.tensors import check_out, compare
from compiler.runtime.threads import runners_of, threads_here
from compiler.support.interrupts import interruptible
from compiler.support.notebook import facts_html, shortened

if TYPE_CHECKING:
    from concurrent.futures import Future

    from schedules.ir.tvm_types import RuntimeModule

Array = np.ndarray
OutputKind = Literal["numpy", "dlpack"]
Out = Mapping[str, Array] | Sequence[Array]


class Module:
    """A compiled model.

    Thread-safe: each run uses its own virtual machine, and all share the parameters. The number of concurrent runs is
    limited by the number of processors (`compiler.runtime.threads`); further runs wait. It remains usable in the child
    after `os.fork`. It cannot be pickled: let each process load the file, whose pages are shared.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        device: Device | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Create a module.

        Args:
            artifact: the result of `compile` or `read_artifact`.
            threads: number of threads per run; None: the artifact's setting, limited to this machine's processors, or
                `default_threads()` if it has none.
            device: the device that kernels run on; None: the device that the module was compiled for.
            executor: executor of the module; None: this machine and `device`.

        Raises:
            IncompatibleArtifactError: this machine cannot run it; the message names what is missing.
            ArtifactError: its machine code could not be loaded.
            OptionError: `threads` is not a valid number of threads, or exceeds this machine's limit.
        """
        self._artifact = artifact
        if executor is None:
            check_machine(artifact.manifest)
        self.threads = threads
        if executor is None:
            executor = LocalExecutor(artifact, self._threads, device)
            self._artifact = replace(artifact, parameters=executor.parameters)
        self._executor = executor

    def run(
        self, inputs: Mapping[str, object] | Sequence[object], *, outputs: OutputKind = "numpy", out: Out | None = None
    ) -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: by name or in order: numpy arrays, or any tensors that support DLPack. Element types must match
                exactly. Memory is used in place if it is contiguous and 64-byte aligned, and copied otherwise.
            outputs: "numpy" for arrays; "dlpack" for tensors that `torch.from_dlpack` and the like accept.
            out: numpy arrays to write results to: by name, for any of the outputs, or one per output in order.
                Shapes and element types must match exactly; any strides and alignment are accepted.

        Returns:
            The outputs by name; those given in `out` are the same arrays. The caller owns all of the memory.

        Raises:
            InputError: names, ranks, shapes, dimensions or element types do not match, or a check inside the model
                failed; the message names the node. Nothing was written to `out` in that case.
            InternalError: TVM failed.
        """
        if out is None and outputs == "numpy":  # fast path: checks take a tenth of a small model's time
            return self._executor.run(inputs, self._threads)
        given = self._checked_out(outputs, out)
        return self._executor.run(inputs, self._threads, as_numpy=outputs == "numpy", out=given)

    def submit(
        self, inputs: Mapping[str, object] | Sequence[object], *, outputs: OutputKind = "numpy", out: Out | None = None
    ) -> Future[dict[str, Any]]:
        """Run the model on another thread; the number of concurrent runs is limited by the processors, in order.

        Modules with the same number of threads share these threads. The inputs must not be modified before the run has
        finished. A future cancelled before its run starts costs nothing.

        Args and errors: as for `run`; the future raises the errors.
        """
        given, threads = self._checked_out(outputs, out), self._threads
        run = self._executor.run
        return self._runners.submit(lambda: run(inputs, threads, as_numpy=outputs == "numpy", out=given))

    async def run_async(
        self, inputs: Mapping[str, object] | Sequence[object], *, outputs: OutputKind = "numpy", out: Out | None = None
    ) -> dict[str, Any]:
        """Await `submit`; the event loop is not blocked while the model runs."""
        from asyncio import wrap_future  # importing it takes longer than loading a small model

        return await wrap_future(self.submit(inputs, outputs=outputs, out=out))

    def _checked_out(self, outputs: str, out: object) -> Mapping[str, Array] | None:
        if outputs not in ("numpy", "dlpack"):
            raise OptionError(f"outputs must be 'numpy' or 'dlpack', not {outputs!r}")
        if out is None:
            return None
        if outputs != "numpy":
            raise OptionError("out= takes numpy arrays and cannot be combined with outputs='dlpack'")
        return check_out(out, self.outputs)

    def __call__(self, *inputs: object, **named: object) -> np.ndarray | dict[str, np.ndarray]:
        """Run the model once on inputs in order, by name, or the first ones in order and the rest by name.

        Returns:
            The output as a numpy array if there is only one, otherwise a dictionary of outputs by name.

        Raises:
            InputError: as `run`; or an input is given twice, or there are too many.
        """
        positional = dict(zip((spec.name for spec in self.inputs), inputs, strict=False))
        twice = sorted(set(positional) & set(named))
        if len(inputs) > len(self.inputs) or twice:
            problem = f"input {twice[0]!r} is given twice" if twice else f"{len(inputs)} inputs were given"
            raise InputError(problem, "the module takes " + ("; ".join(map(str, self.inputs)) or "no inputs"))
        outputs = self.run({**positional, **named})
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    @overload
    def predict(self, given: Given) -> Prediction: ...
    @overload
    def predict(self, given: list[Given] | tuple[Given, ...]) -> list[Prediction]: ...
    def predict(self, given: Given | list[Given] | tuple[Given, ...]) -> Prediction | list[Any]:
        """Run a module compiled with `processing` on an image, a text or a recording, or on a list of these.

        Args:
            given: a PNG, JPEG, WebP, BMP or GIF file by its path or bytes, or uint8 (height, width, 3); for an embedder
            a
                text; for a speech detector a WAV file, or float32 (samples,) at its rate. A list of texts is one run, a
                list of images one run each.

        Returns:
            `Detections`, `Segmentation`, `Classes`, a `Text`, a `Vector` or `Speech`, by the task (for a list, a list):
            `for name, score, box in detections`.

        Raises:
            InputError: the file cannot be read, or is too large.
            OptionError: the module was compiled without processing.
            MissingDependencyError: Pillow, which reads images, or tokenizers is not installed.
        """
        return predict(self, given)

    def rank(self, query: str, texts: Sequence[str]) -> Ranking:
        """Order texts by their relevance to a query, with a module compiled with the task "rerank".

        Returns:
            Texts, scores from 0 to 1 and indices in the list, the best first: `for place, score, text in ranking`.

        Raises:
            InputError: the texts are not strings.
            OptionError: the module was compiled for another task, or without processing.
            MissingDependencyError: tokenizers is not installed.
        """
        return rank(self, query, texts)

    def prepare(self, inputs: Mapping[str, object] | Sequence[object]) -> tuple[RuntimeModule, Callable[[], Any]]:
        """Bind inputs to a dedicated virtual machine, for benchmarks: a run then only executes the model.

        Returns:
            The machine, and a function that runs it on these inputs; kernels use the threads of the calling thread's
            setting (`compiler.runtime.threads.run_with`).

        Raises:
            InputError: as `run` does.
            IncompatibleArtifactError: the module runs under an emulator.
        """
        return self._executor.prepare(inputs)

    def verify(self) -> dict[str, float]:
        """Run the stored reference input and compare with the stored outputs.

        Returns:
            The largest absolute difference of each output.

        Raises:
            VerificationError: an output differs by more than the manifest's tolerance, or there is no reference.
        """
        artifact = self._artifact
        if not artifact.reference_outputs:
            raise VerificationError("the module has no reference run to compare with", "compile it with example inputs")
        actual = self.run_example(artifact.reference_inputs, artifact.manifest.reference_sizes)
        return compare(actual, artifact.reference_outputs, artifact.manifest.reference_tolerance)

    def run_example(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Outputs for an example, including states: for states that are not inputs, of a session's first run.

        Args:
            inputs, sizes: as in `with_reference`.

        Raises as `run`.
        """
        if len(inputs) == len(self.inputs):
            return self.run(inputs)
        session = self.session(sizes=sizes)
        outputs = session.run(inputs)
        updated = session.states
        return {**outputs, **{state.output: updated[state.name] for state in self.manifest.states}}

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that a language model has in addition to its weights. Raises ArtifactError."""
        content = self.artifact.assets.get(DESCRIPTION_ASSET)
        if content is None:
            return ()
        try:
            return decode(content.tobytes(), LanguageModelDescription).adapters
        except FieldError as error:
            raise ArtifactError(f"the module's description of its language model is damaged: {error}") from error

    def adapter_number(self, name: str | None) -> int:
        """The number of an adapter, 0 for None. Raises OptionError if there is none of that name."""
        if name is None:
            return 0
        if name not in self.adapters:
            known = f"there are {', '.join(map(repr, self.adapters))}" if self.adapters else "it keeps none"
            raise OptionError(f"the module has no adapter {str(name)[:80]!r}", known)
        return 1 + self.adapters.index(name)

    def session(
        self,
        capacity: int | None = None,
        *,
        sizes: Mapping[str, int] | None = None,
        adapter: str | None = None,
        snapshots: int = 0,
    ) -> Session:
        """Open a session, whose runs update the module's states in place.

        Args:
            capacity: number of rows of the states, if that size is dynamic.
            sizes: other symbolic dimensions of the states, by name; those that inputs have as well default to the sizes
                of the first run.
            adapter: name of one of `adapters` that the runs use; None for the base model.
            snapshots: number of last runs that `Session.rewind` can undo if each run replaces the states, which are
            then
                copied before each run.

        Raises:
            OptionError: the module has no states or no such adapter, or a size is invalid or missing.
        """
        session = Session(self, capacity, sizes, snapshots)
        session.adapter = adapter
        return session

    def run_in_place(
        self, inputs: Mapping[str, Any], states: Mapping[str, Array], *, outputs: OutputKind = "numpy"
    ) -> dict[str, Any]:
        """Run the model once on states owned by the caller; a `Session` keeps them itself.

        Args:
            inputs: the other inputs by name, as in `run`.
            states: writable arrays by the names of the states' inputs. They are updated in place if they are contiguous
            and
                64-byte aligned, and copied there and back otherwise.
            outputs: as for `run`.

        Returns:
            The outputs by name, without the states.

        Raises:
            OptionError: the module has other states, or some that grow.
            InputError, InternalError: as `run`.
        """
        state_inputs = {state.input for state in self.manifest.states}
        if state_inputs != set(states) or any(state.grows for state in self.manifest.states):
            raise OptionError(
                f"states were given for {', '.join(sorted(states)) or 'no inputs'}; the module updates in place "
                f"{', '.join(sorted(state_inputs)) or 'none'}"
            )
        executor = self._executor
        held_states = executor.hold(states)
        results = executor.step(inputs, held_states, self._threads, as_numpy=outputs == "numpy")

        def take(name: str, array: Array) -> None:
            if array.ctypes.data != states[name].ctypes.data:
                states[name][...] = array

        executor.changed(held_states, take)
        return results

    def with_reference(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None
    ) -> Module:
        """The same module, sharing code and parameters, with another stored example of inputs and outputs.

        If inputs provided by a session are left out, it is a session's first run; `sizes` are those of its states.
        """
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        clone._artifact = self._artifact.with_reference(inputs, outputs, sizes)
        return clone

    @interruptible
    def export(self, path: str | os.PathLike[str], *, sign_key: Key | None = None) -> None:
        """Write the module as one file, atomically; signed if an Ed25519 private key is given.

        Raises:
            StorageError: the file cannot be written; nothing is left behind.
            OptionError: `sign_key` is not a key.
        """
        write_artifact(self._artifact, path, sign_key)

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """Names, shapes (symbolic dimensions by name) and element types of the inputs."""
        return self._artifact.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        """Names, shapes and element types of the outputs."""
        return self._artifact.manifest.outputs

    @property
    def manifest(self) -> Manifest:
        """The module's metadata."""
        return self._artifact.manifest

    @property
    def artifact(self) -> Artifact:
        """The module's contents, as `export` writes them."""
        return self._artifact

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The model's parameters by name; read-only."""
        views = {name: array.view() for name, array in self._artifact.parameters.items()}
        for view in views.values():
            view.flags.writeable = False
        return MappingProxyType(views)

    @property
    def threads(self) -> int:
        """Number of threads per run; assignments affect later runs (None: the module's own setting)."""
        return self._threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        self._threads = threads_here(value, self._artifact.manifest.threads)
        self._runners = runners_of(self._threads)

    def __reduce__(self) -> NoReturn:
        raise OptionError(
            "a Module cannot be pickled: it holds machine code",
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
            ("target", f"{manifest.target.name}, {plural(self.threads, 'thread')}"),
            ("size", f"code {code / 1e6:.2f} MB, parameters {parameters / 1e6:.2f} MB"),
        ]
        return facts_html(f"Module {manifest.model_name}", facts)


Module.__module__ = "tensorwright"  # public import path, for reprs, tracebacks and pickles
