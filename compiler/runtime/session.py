"""`Session`: runs of a module that carry its states from one run to the next.

Format of files with a session's states: a header, the tensors, and a digest.

magic (8), bytes of the header u64, header (JSON), tensors (safetensors), SHA-256 of everything before (32)
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import numpy as np
from msgspec import Meta

from compiler.artifact import Manifest, TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.fields import FieldError, Record, decode, encode
from compiler.artifact.language_model import ADAPTER
from compiler.artifact.storage import read_mapped, write_atomically
from compiler.artifact.tensors import Blob, read_blob
from compiler.errors import ArtifactError, InputError, OptionError
from compiler.runtime.state_sizes import (
    are_known,
    capacity_of,
    completed,
    given_sizes,
    grown_length,
    grown_sizes,
    rows_of_run,
    shape_of,
    state_symbols,
    states_of,
)
from compiler.runtime.tensors import zeros_aligned

if TYPE_CHECKING:
    from compiler.runtime.module import Module

_MAGIC = b"TWSTATE1"
_HEAD = struct.Struct("<8sQ")
_DIGEST_BYTES = 32
_Count = Annotated[int, Meta(ge=0, le=1 << 48)]
Array = np.ndarray


@dataclass(frozen=True)
class SavedStates:
    """Contents of a session file: its module, the number of rows in use, sizes by name, and states by the names of
    inputs."""

    module: str
    length: int
    sizes: Mapping[str, int]
    arrays: Mapping[str, Array]


class _Header(Record, frozen=True, kw_only=True):
    module: str
    length: _Count
    sizes: dict[str, _Count]
    empty: bool


def write_states(path: str | os.PathLike[str], saved: SavedStates) -> None:
    """Write the file atomically. Raises StorageError."""
    described = _Header(module=saved.module, length=saved.length, sizes=dict(saved.sizes), empty=not saved.arrays)
    header = encode(described)
    pieces: list[bytes | memoryview] = [_HEAD.pack(_MAGIC, len(header)), header]
    pieces += Blob(saved.arrays).pieces
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    write_atomically(path, [*pieces, digest.digest()])


def read_states(path: str | os.PathLike[str], manifest: Manifest) -> SavedStates:
    """Read and check a file.

    Raises:
        StorageError: it cannot be read.
        ArtifactError: it is damaged, not a file of states, or of another module.
    """
    data, origin = read_mapped(path), os.fspath(path)
    content = data[: max(len(data) - _DIGEST_BYTES, 0)]
    if len(content) < _HEAD.size or bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise ArtifactError(f"{origin} is not a file of a session's states", "session.save(path) writes one")
    if hashlib.sha256(content).digest() != bytes(data[len(content) :]):
        raise ArtifactError(f"{origin} is damaged: its checksum does not match", "save the session again")
    end = _HEAD.size + _HEAD.unpack(content[: _HEAD.size])[1]
    try:
        header = decode(content[_HEAD.size : end], _Header)
    except FieldError as error:
        raise ArtifactError(f"{origin} is damaged: its header is not valid") from error
    if header.module != manifest.state_format:
        raise ArtifactError(
            f"{origin} was written by a session of another module, not of {manifest.model_name!r}",
            "load it into a session of the module that wrote it",
        )
    if header.empty:
        return SavedStates(header.module, 0, header.sizes, {})
    expected = _expected(manifest, header, origin)
    return SavedStates(header.module, header.length, header.sizes, read_blob(content[end:], expected, "states"))


def _expected(manifest: Manifest, header: _Header, origin: str) -> list[TensorDescription]:
    """The tensors that the file must contain: for states with rows, only the rows in use."""
    if not are_known(manifest, header.sizes):
        raise ArtifactError(f"{origin} is damaged: the sizes of its states are missing")
    axes = {state.input: state.axis for state in manifest.states if manifest.position is not None}
    expected = []
    for each in states_of(manifest):
        try:
            shape = list(shape_of(each, {**header.sizes, **grown_sizes(manifest, header.length)}))
        except InputError as error:
            raise ArtifactError(f"{origin} is damaged: {error.message}") from error
        axis = axes.get(each.name)
        if axis is not None:
            shape[axis] = header.length
        expected.append(TensorDescription(name=each.name, shape=tuple(shape), dtype=each.carrier or each.dtype))
    return expected


OutputKind = Literal["numpy", "dlpack"]


@dataclass(frozen=True)
class Snapshot:
    """Copies of those states of a session that each run overwrites, at one moment.

    Attributes:
        length: number of rows of the other states in use.
        arrays: copies by the name of the state's input.
    """

    length: int
    arrays: Mapping[str, Array]


class Session:
    """The states of one stream, conversation or sequence, and the runs that update them in place.

    Sessions of a module are independent of each other and may run concurrently in several threads; the runs of one
    session are sequential.
    """

    def __init__(
        self, module: Module, capacity: int | None = None, sizes: Mapping[str, int] | None = None, snapshots: int = 0
    ) -> None:
        """See `Module.session`."""
        manifest = module.manifest
        if not isinstance(snapshots, int) or isinstance(snapshots, bool) or snapshots < 0:
            raise OptionError(f"snapshots must be a whole number of at least 0, not {snapshots!r}")
        if not manifest.states:
            raise OptionError("the module has no states", "run it without a session: module.run(...)")
        self._module = module
        self._manifest = manifest
        self._states = {state.input: state for state in manifest.states}
        self._inputs = {each.name: each for each in manifest.inputs if each.name in self._states}
        self._room: tuple[tuple[tuple[str, int], ...], int | None] | None = None  # the capacity for these sizes
        self._kept = frozenset({*self._states, self._position or ""})
        self._counter = next((each for each in manifest.inputs if each.name == self._position), None)
        chosen = next((each for each in manifest.session_inputs if each.name == ADAPTER and not each.shape), None)
        self._chooses = chosen is not None and bool(module.adapters)
        if self._chooses:
            self._kept |= {ADAPTER}
        self._described = tuple(each for each in manifest.session_inputs if each.name not in self._kept)
        self._adapter = 0
        self._own = tuple(each.name for each in self._described)
        self._sizes = given_sizes(manifest, capacity, sizes)
        self._grown = [state for state in manifest.states if state.grows]
        self._counting = tuple(grown_sizes(manifest, 0))  # sizes that equal the number of rows
        self._limit = capacity if self._grown else None
        self._held: dict[str, Any] | None = None
        self._length = 0
        replaced = any(state.axis is None for state in manifest.states) and manifest.position is not None
        self._before: deque[Snapshot] = deque(maxlen=snapshots if replaced else 0)  # before the last runs, newest last
        self._lock = threading.Lock()

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """Inputs of `run`: the module's inputs without states and position."""
        return self._described

    @property
    def adapter(self) -> str | None:
        """Name of the adapter used by the next runs; None for the base model. Rows already in the states are not
        recomputed."""
        return self._module.adapters[self._adapter - 1] if self._adapter else None

    @adapter.setter
    def adapter(self, name: str | None) -> None:
        if name is not None and not self._chooses and self._module.adapters:
            raise OptionError("the runs of this session choose an adapter for each token", "give the input 'adapter'")
        self._adapter = self._module.adapter_number(name)

    @property
    def length(self) -> int:
        """Number of rows of the states in use; 0 for a module whose states have no rows."""
        return self._length

    @property
    def capacity(self) -> int | None:
        """Maximum number of rows; None if unlimited or not known yet."""
        if self._grown:
            return self._limit
        sizes = tuple(self._sizes.items())
        if self._room is None or self._room[0] != sizes:
            self._room = sizes, capacity_of(self._manifest, self._sizes)
        return self._room[1]

    @property
    def states(self) -> dict[str, Array]:
        """Copies of the states by name; empty before the first run if their sizes depend on its inputs."""
        with self._lock:
            self._ready()
            read = {} if self._held is None else self._module._executor.read(self._held)
        return {self._states[name].name: array for name, array in read.items()}

    def run(self, inputs: Mapping[str, object] | Sequence[object], *, outputs: OutputKind = "numpy") -> dict[str, Any]:
        """Run one step on these inputs and the states, and update the states.

        Args:
            inputs: the inputs listed in `inputs`, by name or in order, as for `Module.run`.
            outputs: as for `Module.run`.

        Returns:
            The outputs by name, without the states.

        Raises:
            InputError: as `Module.run`, or the states have no room for the rows of this run; nothing was written then.
            InternalError: TVM failed.
        """
        if outputs not in ("numpy", "dlpack"):
            raise OptionError(f"outputs must be 'numpy' or 'dlpack', not {outputs!r}")
        named = self._named(inputs)
        with self._lock:
            if self._held is None:
                self._allocate(completed(self._manifest, self._sizes, named))
            length = self._length_after(named)
            self._add_position(named)
            if self._chooses:
                named[ADAPTER] = np.array(self._adapter)
            assert self._held is not None
            if self._before.maxlen:
                self._before.append(self._taken(None))
            module = self._module
            results = module._executor.step(named, self._held, module.threads, as_numpy=outputs == "numpy")
            self._length = self._grown_length() if self._grown else length
        return results

    def _length_after(self, named: dict[str, Any]) -> int:
        """Number of rows in use after a run. Raises InputError if there is no room for them."""
        length = self._length + rows_of_run(self._manifest, self._described, named)
        if self._grown:
            sizes = {**completed(self._manifest, self._sizes, named), **grown_sizes(self._manifest, self._length)}
            known = grown_length(self._manifest, sizes)
            length = self._length if known is None else known
        capacity = self.capacity
        if capacity is not None and length > capacity:
            raise InputError(
                f"the session is full: {self._length} of {capacity} rows are in use, and this run adds "
                f"{length - self._length}",
                "open it with a larger capacity (module.session(capacity=...)), or rewind or reset it",
            )
        return length

    def _grown_length(self) -> int:
        assert self._held is not None
        state = self._grown[0]
        return int(np.shape(self._held[state.input])[state.axis or 0])

    def reset(self) -> None:
        """Restore the initial states."""
        with self._lock:
            self._length = 0
            self._held = None
            self._before.clear()

    def rewind(self, count: int) -> None:
        """Discard the last `count` rows: the next run overwrites them.

        States that each run replaces are restored to the beginning of one of the last runs; the session keeps as many
        snapshots as `Module.session(snapshots=...)` requests.

        Raises:
            OptionError: fewer rows are in use, or the module has states that are replaced and there is no snapshot of
            them
                for that moment.
        """
        with self._lock:
            replaced = [state.name for state in self._states.values() if state.axis is None]
            if self._before.maxlen and count:
                self._back_to(count)
                return
            if (self._manifest.position is None and not self._grown) or replaced:
                what = f"state {replaced[0]!r} is replaced by each run" if replaced else "the module counts no rows"
                raise OptionError(
                    f"the session cannot be rewound: {what}",
                    "open it with module.session(snapshots=...), or take a snapshot() before a run that you may want to"
                    " undo",
                )
            if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= self._length:
                raise OptionError(f"cannot rewind by {count!r}: the session has length {self._length}")
            self._shorten(self._length - count)

    def _back_to(self, count: int) -> None:
        """`rewind` using the kept snapshots."""
        reachable = [self._length - each.length for each in self._before]
        if count not in reachable:
            raise OptionError(
                f"cannot rewind by {count!r}: the last runs can be undone by rewinding {sorted(reachable)} rows",
                "open the session with more snapshots, or rewind to where a run began",
            )
        while self._before[-1].length > self._length - count:
            self._before.pop()
        self._restore(self._before.pop(), None)

    def _shorten(self, length: int) -> None:
        """Set the number of rows in use."""
        self._length = length
        if self._grown and self._held is not None:
            executor = self._module._executor
            arrays = executor.read(self._held)
            self._held = executor.hold({name: self._used(name, array, length) for name, array in arrays.items()})

    def snapshot(self, entry: int | None = None) -> Snapshot:
        """Copy the states that each run overwrites; states with counted rows need no copy to be restored.

        Args:
            entry: for a module whose states hold several sequences, the one to copy; its rows are managed by the
            caller.
        """
        with self._lock:
            self._ready()
            return self._taken(entry)

    def _taken(self, entry: int | None) -> Snapshot:
        arrays: dict[str, Array] = {}

        def change(name: str, array: Array) -> None:
            arrays[name] = (array if entry is None else array[entry]).copy()

        self._module._executor.changed(self._overwritten(entry), change)
        return Snapshot(self._length, arrays)

    def restore(self, snapshot: Snapshot, entry: int | None = None) -> None:
        """Go back to a snapshot of this session, or of the one it was forked from; later inputs are discarded.

        Rows in use at the snapshot must not have been rewound and overwritten in between.

        Args:
            snapshot: a result of `snapshot`.
            entry: see `snapshot`.

        Raises OptionError if fewer rows are in use than at the snapshot, or if it belongs to another module.
        """
        with self._lock:
            self._ready()
            if set(self._overwritten(entry)) != set(snapshot.arrays) or snapshot.length > self._length:
                raise OptionError("the snapshot is not one of this session, which was reset or rewound since, or new")
            self._restore(snapshot, entry)

    def _restore(self, snapshot: Snapshot, entry: int | None) -> None:
        def change(name: str, array: Array) -> None:
            array[() if entry is None else entry] = snapshot.arrays[name]

        if self._held is not None:
            self._held.update(self._module._executor.changed(self._overwritten(entry), change))
        while self._before and self._before[-1].length >= snapshot.length:
            self._before.pop()
        self._shorten(snapshot.length)

    def _overwritten(self, entry: int | None) -> dict[str, Any]:
        """The held states without rows, or whose rows are not counted."""
        counted = entry is not None or self._manifest.position is not None or bool(self._grown)
        held = self._held or {}
        return {name: each for name, each in held.items() if self._states[name].axis is None or not counted}

    def copy_entry(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` rows of entry `source` of each state's first axis to entry `target`.

        For modules whose states hold several sequences. Raises OptionError if there are no such entries or rows.
        """
        with self._lock:
            self._ready()
            if self._held is None:
                raise OptionError("the sizes of the states are not known before the first run")

            def change(name: str, array: Array) -> None:
                axis = self._states[name].axis
                if not 0 <= source < len(array) or not 0 <= target < len(array):
                    raise OptionError(f"state {name!r} has {len(array)} entries, not {source} or {target}")
                if axis is not None and not 0 <= rows <= array.shape[axis]:
                    raise OptionError(f"state {name!r} has {array.shape[axis]} rows, not {rows}")
                used = (slice(None),) * ((axis or 1) - 1) + ((slice(0, rows),) if axis else ())
                array[(target, *used)] = array[(source, *used)]

            self._held = self._module._executor.changed(self._held, change)

    def fork(self) -> Session:
        """Return an independent session with a copy of the states."""
        forked = object.__new__(Session)
        with self._lock:
            forked.__dict__.update(self.__dict__)
            forked._sizes = dict(self._sizes)
            forked._before = self._before.copy()
            forked._lock = threading.Lock()
            if self._held is not None:
                executor = self._module._executor
                forked._held = executor.hold(executor.read(self._held))
        return forked

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the states to a file, atomically; for states with rows only those in use.

        Raises StorageError if it cannot be written.
        """
        with self._lock:
            self._ready()
            arrays = {} if self._held is None else self._module._executor.read(self._held)
            used = {name: self._used(name, array, self._length) for name, array in arrays.items()}
            write_states(path, SavedStates(self._manifest.state_format or "", self._length, dict(self._sizes), used))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load the states from a file written by a session of this module, possibly with another capacity.

        Raises:
            StorageError: it cannot be read.
            ArtifactError: it is damaged, not a file of states, or of another module.
            InputError: it has more rows than there is room for.
        """
        saved = read_states(path, self._manifest)
        with self._lock:
            self._before.clear()
            capacity = self.capacity
            if capacity is not None and saved.length > capacity:
                raise InputError(
                    f"{os.fspath(path)} holds {saved.length} rows, but the session has a capacity of {capacity}",
                    "open the session with a larger capacity",
                )
            if not saved.arrays:
                self._held, self._length = None, 0
                return
            self._allocate({**saved.sizes, **self._sizes}, saved)
            self._length = saved.length

    def _named(self, inputs: object) -> dict[str, Any]:
        """The inputs by name. Raises InputError for inputs that the session provides, or a wrong number."""
        if isinstance(inputs, Mapping):
            own = sorted(self._kept.intersection(inputs))
            if own:
                raise InputError(f"input {own[0]!r} is kept by the session", f"a run takes {self._takes()}")
            return dict(inputs)
        if isinstance(inputs, str | bytes | np.ndarray) or not isinstance(inputs, Sequence):
            raise InputError(f"inputs must be a dict by name or a sequence in order, not {type(inputs).__name__}")
        if len(inputs) != len(self._own):
            problem = f"expected {len(self._own)} input{'s' * (len(self._own) != 1)}, got {len(inputs)}"
            raise InputError(problem, f"a run takes {self._takes()}")
        return dict(zip(self._own, inputs, strict=True))

    def _takes(self) -> str:
        return "; ".join(map(str, self.inputs)) or "no inputs"

    @property
    def _position(self) -> str | None:
        position = self._manifest.position
        return None if position is None else position.input

    def _add_position(self, named: dict[str, Any]) -> None:
        description = self._counter
        if description is None:
            return
        shape = description.shape
        if not all(isinstance(size, int) for size in shape):
            sizes = completed(self._manifest, self._sizes, named)
            sizes.update(dict.fromkeys(self._counting, self._length))
            shape = shape_of(description, sizes)
        named[description.name] = np.full(shape, self._length, np.int64)

    def _ready(self) -> None:
        """Allocate the states if their sizes are known without a run."""
        if self._held is None and are_known(self._manifest, self._sizes):
            self._allocate(self._sizes)

    def _allocate(self, sizes: Mapping[str, int], saved: SavedStates | None = None) -> None:
        arrays = {}
        for name, description in self._inputs.items():
            shape = shape_of(description, {**sizes, **grown_sizes(self._manifest, saved.length if saved else 0)})
            initial = self._module.artifact.initial_states.get(name)
            element = ELEMENT_TYPES[description.carrier or description.dtype]
            try:
                array = zeros_aligned(shape, element) if initial is None else np.array(initial)
            except MemoryError as error:
                raise OptionError(f"no memory for the state {name!r} of shape {shape}", "use smaller sizes") from error
            if saved is not None:
                self._used(name, array, saved.length)[...] = saved.arrays[name]
            arrays[name] = array
        self._held = self._module._executor.hold(arrays)
        self._sizes = {name: sizes[name] for name in state_symbols(self._manifest)}

    def _used(self, name: str, array: Array, length: int) -> Array:
        """The rows of a state in use, as a view."""
        axis = self._states[name].axis
        if axis is None or (self._manifest.position is None and not self._states[name].grows):
            return array
        return array[(slice(None),) * axis + (slice(0, length),)]

    def __reduce__(self) -> NoReturn:
        raise OptionError("a Session cannot be pickled", "save() it to a file")

    def __repr__(self) -> str:
        rows = "" if self._manifest.position is None else f", {self._length} of {self.capacity} rows in use"
        return f"<Session of {self._manifest.model_name!r}, {len(self._states)} states{rows}>"


Session.__module__ = "tensorwright"  # public import path, for reprs, tracebacks and pickles
