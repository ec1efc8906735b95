"""Executors of modules on this machine; those for other architectures are in `compiler.runtime.emulated`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from compiler.artifact import Artifact
from compiler.artifact.dtypes import ELEMENT_TYPES, ElementType
from compiler.artifact.entries import CHECK_MARK
from compiler.artifact.manifest import Manifest
from compiler.errors import IncompatibleArtifactError, InputError, InternalError
from compiler.runtime.device import Device, device_for, load_accelerator
from compiler.runtime.inputs import Held, HeldStates, InputBinder
from compiler.runtime.library import (
    POOL,
    bound_main,
    can_prepare,
    check_arity,
    check_elf,
    check_parameters,
    expand_parameters,
    prepared_main,
    release_memory,
)
from compiler.runtime.parameter_store import PARAMETERS, Array, use_huge_pages
from compiler.runtime.tensors import (
    InputMemory,
    KeptResults,
    OutputReader,
    aligned_copy,
    array_over,
    is_usable,
    tensor_over,
    written,
)
from compiler.runtime.threads import in_force, run_with
from compiler.runtime.tvm_runtime import runtime_version
from targets import cpuinfo

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PackedFunc, RuntimeModule, RuntimeTensor

Inputs = Mapping[str, Any] | Sequence[Any]
Arrays = Mapping[str, Array]


_NOTHING: frozenset[str] = frozenset()
_KEPT_BYTES = 32 << 10  # copying more bytes takes longer than allocating them
_IDLE_RUNS = 256  # a virtual machine is freed after this many runs that did not use it


class Executor(Protocol):
    """Runs one module's code. Safe to use from several threads at once."""

    def run(self, inputs: Inputs, threads: int, *, as_numpy: bool = True, out: Arrays | None = None) -> dict[str, Any]:
        """The outputs by name: arrays, or tensors that support DLPack; those in `out` are these. See `Module.run`."""

    def prepare(self, inputs: Inputs) -> tuple[Any, Callable[[], Any]]:
        """Bind inputs to a dedicated virtual machine. See `Module.prepare`."""

    def hold(self, states: Mapping[str, Array]) -> dict[str, Any]:
        """States of a session in memory that kernels can read, by the names of their inputs; the arrays are the
        session's."""

    def step(
        self, inputs: Mapping[str, object], held: dict[str, Any], threads: int, *, as_numpy: bool
    ) -> dict[str, Any]:
        """The outputs that are not states; the held states are updated. Not for two threads with the same states."""

    def read(self, held: Mapping[str, object]) -> dict[str, Array]:
        """Copies of the states."""

    def changed(self, held: dict[str, Any], change: Callable[[str, Array], None]) -> dict[str, Any]:
        """The held states after `change`, called with each name and array, wrote to them."""


class _Session:
    """A virtual machine with its own staging memory for inputs; used by one run at a time."""

    __slots__ = (
        "_can_keep",
        "_can_prepare",
        "_last",
        "_main",
        "_parameters",
        "_prepared",
        "before",
        "is_first",
        "keeps",
        "machine",
        "memory",
        "placed",
        "results",
        "small",
        "turn",
    )

    def __init__(
        self, machine: RuntimeModule, parameters: Sequence[RuntimeTensor], inputs: int, *, may_keep: bool
    ) -> None:
        """`may_keep`: results may be in memory of the session, since runs of this module copy them."""
        self.machine = machine
        check_arity(self.machine, inputs + len(parameters))
        self.memory = InputMemory(inputs)
        self.placed: list[Any] = [None] * inputs  # see `Device.run`
        self._main = bound_main(self.machine, parameters)
        self._parameters = parameters
        self._can_prepare = can_prepare(machine)
        self._can_keep = may_keep and can_prepare(machine, keeping=True)
        self._last: Mapping[str, int] | None = None  # the sizes of the last run
        self._prepared: Any = None  # the function for those sizes
        self.turn = 0  # number of the last run
        self.is_first = True  # the first run of its sizes
        self.before = 0  # bytes allocated before that run
        self.small = False  # that run's results are small enough to be copied in later ones
        self.keeps = False  # the function writes results to the session's memory
        self.results: KeptResults | None = None  # that memory, once it ran

    def main(self) -> PackedFunc:
        """The function for the inputs in `memory`; specialized from the second run of the same sizes on."""
        sizes = self.memory.sizes
        if sizes != self._last:
            self._last, self._prepared, self.results = sizes, None, None
            self.is_first, self.keeps, self.before = True, False, POOL.allocated()
            return self._main
        if self._prepared is None:
            self.is_first, self.keeps = False, self.small and self._can_keep
            self._prepared = self._main
            if self.keeps or self._can_prepare:
                arguments = self.machine, self.memory.tensors, self._parameters
                self._prepared = prepared_main(*arguments, keeping=self.keeps)
        return self._prepared


class LocalExecutor:
    """Runs a module on this machine's processor, or on a device attached to it.

    Each run uses its own virtual machine; all share the parameters.
    """

    def __init__(self, artifact: Artifact, threads: int, device: Device | None = None) -> None:
        """Load the code, and place the parameters; compressed ones are expanded by `threads` threads.

        Raises:
            IncompatibleArtifactError: this machine cannot run it; the message names what is missing.
            ArtifactError: its machine code could not be loaded.
        """
        manifest = artifact.manifest
        check_machine(manifest)
        check_elf(artifact.library, cpuinfo.architecture())
        load_accelerator(manifest)
        self._device = device_for(manifest) if device is None else device
        self._stays = self._device.stays
        self._executable = self._device.load(artifact.library)
        self._kept = arrays = _usable_parameters(artifact)
        self.parameters = dict(zip(artifact.parameters, arrays, strict=True))
        stored = map(tensor_over, arrays, _elements(artifact))
        placed = [self._device.to_device(each) for each in stored]
        self._parameters = self._expanded(placed, manifest.compact_parameters, threads)
        self._binder = InputBinder(manifest.inputs, manifest.requirements, manifest.indices)
        self._reader = OutputReader(manifest.outputs, arrays)
        indices = {name: index for index, name in enumerate(self._binder.names)}
        self._states = [indices[state.input] for state in manifest.states if not state.grows]
        self._held = frozenset(indices[state.input] for state in manifest.states)
        results = {output.name: index for index, output in enumerate(manifest.outputs)}
        self._grown = [(state.input, results[state.output]) for state in manifest.states if state.grows]
        self._updated = frozenset(state.output for state in manifest.states)
        # Appending to a list and popping from its end are atomic.
        self._idle: list[_Session] = [self._new_session()]
        self._turn = 0  # counts runs; concurrent increments may be lost
        self._code = POOL.register()
        check_parameters(self._idle[0].machine, self._parameters)

    def _expanded(self, stored: list[RuntimeTensor], compact: int, threads: int) -> list[RuntimeTensor]:
        """The parameters of `main`: the stored ones, with the last `compact` of them expanded."""
        if not compact:
            return stored
        expanded = self._expand(stored[-compact:], threads)
        if not self._stays:
            first_new = len(self._kept)
            shared = [self._shared(each) for each in expanded]
            expanded.clear()
            release_memory()  # memory of tensors that were already in the store
            expanded = shared
            use_huge_pages(self._kept[first_new:])
        return [*stored[:-compact], *expanded]

    def _expand(self, small: list[RuntimeTensor], threads: int) -> list[RuntimeTensor]:
        machine = self._device.virtual_machine(self._executable)
        return run_with(threads, lambda: expand_parameters(machine, small))

    def _shared(self, tensor: RuntimeTensor) -> RuntimeTensor:
        """A tensor of the same bytes, shared by all modules that have these."""
        element = ELEMENT_TYPES.get(str(tensor.dtype))
        array = None if element is None else array_over(tensor, element)
        if element is None or array is None or not is_usable(array):
            return tensor
        shared = PARAMETERS.shared(array)
        self._kept.append(shared)
        return tensor if shared is array else tensor_over(shared, element)

    def run(self, inputs: Inputs, threads: int, *, as_numpy: bool = True, out: Arrays | None = None) -> dict[str, Any]:
        if self._stays:
            threads = 1
        if in_force(threads):
            return self._run(inputs, None, as_numpy, out)
        return run_with(threads, lambda: self._run(inputs, None, as_numpy, out))

    def step(
        self, inputs: Mapping[str, object], held: dict[str, Any], threads: int, *, as_numpy: bool
    ) -> dict[str, Any]:
        assert isinstance(held, HeldStates)  # made by `hold`
        return run_with(1 if self._stays else threads, lambda: self._run(inputs, held, as_numpy))

    def _run(
        self, inputs: Inputs, states: HeldStates | None, as_numpy: bool, out: Arrays | None = None
    ) -> dict[str, Any]:
        try:
            session = self._idle.pop()
        except IndexError:
            session = self._new_session()
        session.turn = self._turn = self._turn + 1
        try:
            if states is None:
                tensors = self._binder.bind(inputs, session.memory)
            else:
                tensors = self._binder.bind_beside(dict(inputs), states, session.memory)
        except InputError:
            session.memory.release()
            self._give_back(session)
            raise
        try:
            if states is None:
                given = self._with_own_states(tensors) if self._states else tensors
                results = self._device.run(session.main(), given, session.placed)
            else:
                results = self._step(tensors, session, states)
        except Exception as error:  # TVM raises classes named by its C++ side
            # The virtual machine is dropped: its state after an error is undefined.
            raise tvm_error(error, len(tensors)) from error
        if session.keeps:
            if session.results is None:
                session.results = self._reader.kept(results)
            named = session.results.copies(as_numpy)
        else:
            without = _NOTHING if states is None else self._updated
            memory = session.memory
            named = self._reader.read(results, memory.ranges, as_numpy, without, memory.states)
            if session.is_first:
                session.small = as_numpy and sum(array.nbytes for array in named.values()) <= _KEPT_BYTES
        session.memory.release()
        if session.is_first and session.memory.sizes:
            POOL.ran((self._code, *session.memory.sizes.values()), session.before)
        self._give_back(session)
        return named if out is None else written(named, out)

    def _give_back(self, session: _Session) -> None:
        self._idle.append(session)
        if not session.turn % _IDLE_RUNS and self._free_unused(session.turn - _IDLE_RUNS):
            release_memory()

    def _free_unused(self, turn: int) -> bool:
        """Free virtual machines unused since that run; return whether any were freed."""
        freed = False
        for session in list(self._idle):
            if session.turn <= turn:
                with contextlib.suppress(ValueError):  # another thread took it meanwhile
                    self._idle.remove(session)
                    freed = True
        return freed

    def _step(self, tensors: list[RuntimeTensor], session: _Session, states: dict[str, Any]) -> Sequence[RuntimeTensor]:
        """TVM's array of results; the held states stay in device memory."""
        computed = self._device.call(session.main(), self._beside_held(tensors, session))
        self._take_grown(computed, tensors, states)
        return self._device.to_host(computed)

    def _with_own_states(self, tensors: list[RuntimeTensor]) -> list[RuntimeTensor]:
        copies = list(tensors)
        for index in self._states:
            element = self._binder.specs[index].element
            copies[index] = tensor_over(aligned_copy(array_over(tensors[index], element), element), element)
        return copies

    def _beside_held(self, tensors: list[RuntimeTensor], session: _Session) -> Sequence[RuntimeTensor]:
        """The inputs in memory that kernels can read; states are there already."""
        fed = [index for index in range(len(tensors)) if index not in self._held]
        kept = [session.placed[index] for index in fed]
        placed = list(tensors)
        for index, tensor in zip(fed, self._device.place([tensors[index] for index in fed], kept), strict=True):
            placed[index] = tensor
        for index, tensor in zip(fed, kept, strict=True):
            session.placed[index] = tensor
        return placed

    def _take_grown(
        self, results: Sequence[RuntimeTensor], tensors: list[RuntimeTensor], states: dict[str, Any]
    ) -> None:
        """Take states that are new tensors; those in the caller's memory are copied."""
        for name, index in self._grown:
            tensor = results[index]
            if any(tensor.data_ptr() == each.data_ptr() for each in tensors):
                element = self._element(name)
                (host,) = self._device.to_host([tensor])
                tensor = self._device.to_device(tensor_over(aligned_copy(array_over(host, element), element), element))
            states[name] = Held(tensor, self._element(name).numpy.itemsize)

    def hold(self, states: Mapping[str, Array]) -> dict[str, Any]:
        held = HeldStates()
        for name, array in states.items():
            element = self._element(name)
            usable = array if is_usable(array) else aligned_copy(array, element)
            held[name] = Held(self._device.to_device(tensor_over(usable, element)), element.numpy.itemsize)
        return held

    def read(self, held: Mapping[str, Any]) -> dict[str, Array]:
        tensors = self._device.to_host([each.tensor for each in held.values()])
        elements = [self._element(name) for name in held]
        arrays = [aligned_copy(array_over(*pair), pair[1]) for pair in zip(tensors, elements, strict=True)]
        return dict(zip(held, arrays, strict=True))

    def changed(self, held: dict[str, Any], change: Callable[[str, Array], None]) -> dict[str, Any]:
        if not self._device.shares_memory:
            arrays = self.read(held)
            for name, array in arrays.items():
                change(name, array)
            return self.hold(arrays)
        for name, each in held.items():
            change(name, array_over(each.tensor, self._element(name)))
        return held

    def _element(self, name: str) -> ElementType:
        """The element type that the code uses for an input."""
        return self._binder.specs[self._binder.names.index(name)].element

    def prepare(self, inputs: Inputs) -> tuple[RuntimeModule, Callable[[], Any]]:
        session = self._new_session()
        bound = self._with_own_states(self._binder.bind(inputs, session.memory))
        tensors = [self._device.to_device(each) for each in bound]

        session.main()
        main = session.main()  # the function that a second run uses

        def run() -> Sequence[RuntimeTensor]:
            _ = session, inputs  # these own the tensors' memory
            return self._device.call(main, tensors)

        return session.machine, run

    def _new_session(self) -> _Session:
        machine = self._device.virtual_machine(self._executable)
        may_keep = self._reader.can_keep and not self._held and not self._stays
        return _Session(machine, self._parameters, len(self._binder.specs), may_keep=may_keep)


def _elements(artifact: Artifact) -> list[ElementType]:
    return [ELEMENT_TYPES[tensor.dtype] for tensor in artifact.manifest.parameters]


def _usable_parameters(artifact: Artifact) -> list[Array]:
    """The stored parameters, shared with other modules, and copied only if generated code cannot read them in place."""
    return [
        PARAMETERS.shared(array if is_usable(array) else aligned_copy(array, element))
        for array, element in zip(artifact.parameters.values(), _elements(artifact), strict=True)
    ]


_HINT = "the sizes or values of the inputs do not fit this model: change them, or compile the model for these sizes"
_MARKED = re.compile(re.escape(CHECK_MARK) + r"\[(.*?)\](?: |$)", re.DOTALL)
_NUMBERS = re.compile(r"\((-?\d+) vs\. (-?\d+)\)")


def tvm_error(error: Exception, inputs: int) -> InputError | InternalError:
    """The error to raise instead of `error`, raised by a run on `inputs` inputs.

    Checks inside the module catch invalid inputs that the manifest cannot describe: relations between symbolic sizes,
    sizes computed from values, conditions that select a branch that was not compiled, assertions.
    """
    text = str(error).strip()
    marked = _MARKED.search(text)
    if marked is not None:
        return InputError(_check_text(marked[1], text), _HINT)
    for index in range(inputs):
        if f"loc=param[{index}]" in text:
            return InputError(f"the inputs do not fit the model: {text}")
    if "match_cast error" in text:
        return InputError(_check_text("a size inside the model", text), _HINT)
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return InputError("not enough memory to run the model on these inputs", "use smaller inputs")
    if isinstance(error, AssertionError) or type(error).__name__ == "AssertionError":
        return InputError(f"an assertion of the model failed: {text}", _HINT)
    return InternalError(f"the module failed while running: {text}", "please report this, with the model")


def _check_text(what: str, text: str) -> str:
    """Description of a check with the sizes, or its own reason if it has one (`node: reason`)."""
    numbers = _NUMBERS.search(text)
    if ": " in what or numbers is None:
        return what
    return f"{what}: a dimension is {numbers[1]}, expected {numbers[2]}"


def check_machine(manifest: Manifest) -> None:
    """Raise IncompatibleArtifactError, with the missing parts, unless this machine and its TVM can run the module."""
    target = manifest.target
    if cpuinfo.llvm_architecture(target.architecture) != cpuinfo.architecture():
        raise IncompatibleArtifactError(
            f"the module was compiled for {target.architecture} (target {target.name!r}), "
            f"and this machine is {cpuinfo.architecture()}",
            "compile the model for this machine's target",
        )
    missing = [feature for feature in target.required_cpu_features if not cpuinfo.supports(feature)]
    if missing:
        raise IncompatibleArtifactError(
            f"the module needs processor features that this machine lacks: {', '.join(missing)} "
            f"(it was compiled for target {target.name!r})",
            "compile the model for this machine's target, or for a more general one",
        )
    if runtime_version() not in (None, manifest.versions.tvm):
        raise IncompatibleArtifactError(
            f"the module was compiled with TVM {manifest.versions.tvm}, and this machine has TVM {runtime_version()}",
            f"install apache-tvm=={manifest.versions.tvm}, or compile the model again",
        )
