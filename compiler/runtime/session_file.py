"""Files with a session's states: a header, the tensors, and a digest.

magic (8), bytes of the header u64, header (JSON), tensors (safetensors), SHA-256 of all before (32)
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from compiler.artifact import Manifest, TensorDescription
from compiler.artifact.fields import FieldError, Record, decode, encode
from compiler.artifact.storage import read_mapped, write_atomically
from compiler.artifact.tensors import Blob, read_blob
from compiler.errors import ArtifactError, InputError
from compiler.runtime.state_sizes import are_known, grown_sizes, shape_of, states_of

_MAGIC = b"TWSTATE1"
_HEAD = struct.Struct("<8sQ")
_DIGEST_BYTES = 32
_Count = Annotated[int, Meta(ge=0, le=1 << 48)]
Array = np.ndarray


@dataclass(frozen=True)
class SavedStates:
    """Contents of a session file: of which module, how many rows are in use, sizes by name, states by the names of
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
    """Write the file, whole or not at all. Raises StorageError."""
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
        ArtifactError: it is damaged, no file of states, or of another module.
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
    """The tensors that the file must hold: of states with rows, those in use."""
    if not are_known(manifest, header.sizes):
        raise ArtifactError(f"{origin} is damaged: it does not say the sizes of its states")
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
