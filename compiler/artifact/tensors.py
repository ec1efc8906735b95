"""Tensors as one safetensors blob, written with every tensor 64-byte aligned and read without copying.

The format allows no gaps, so alignment gaps are filled by small padding tensors whose names start with `PADDING`;
readers that do not know them see a few unused bytes. Types without a name in safetensors are stored as a type of equal
size; the manifest contains the true type.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.fields import FieldError, Record, decode
from compiler.artifact.manifest import MAX_ELEMENTS, TensorDescription
from compiler.errors import ArtifactError

ALIGNMENT = 64
PADDING = "__padding__"
_MAX_HEADER_BYTES = 64 << 20
_LENGTH = struct.Struct("<Q")
Write = Callable[[memoryview | bytes], object]
Offset = Annotated[int, Meta(ge=0, le=2**62)]


class TensorEntry(Record, frozen=True, kw_only=True):
    """Type, shape and offset of one tensor, as in a blob's header."""

    dtype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)], ...], Meta(max_length=64)]
    data_offsets: tuple[Offset, Offset]


class Blob:
    """A safetensors blob that is laid out but not yet joined: `pieces` are its bytes in order, `nbytes` their total
    size."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        entries: dict[str, Any] = {}
        body: list[memoryview | bytes] = []
        position = 0
        for name, array in arrays.items():
            if position % ALIGNMENT:
                gap = -position % ALIGNMENT
                entries[f"{PADDING}{len(entries)}"] = _entry("U8", (gap,), position, gap)
                body.append(bytes(gap))
                position += gap
            element = ELEMENT_TYPES[str(array.dtype)]
            entries[name] = _entry(element.storage, array.shape, position, array.nbytes)
            body.append(bytes_of(array))
            position += array.nbytes
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        # Trailing spaces align the data to a multiple of 64; the format allows them.
        header += b" " * (-(len(header) + _LENGTH.size) % ALIGNMENT)
        self.pieces: Sequence[memoryview | bytes] = [_LENGTH.pack(len(header)) + header, *body]
        self.nbytes = _LENGTH.size + len(header) + position


def _entry(dtype: str, shape: Sequence[int], start: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order (a view if it is contiguous)."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_blob(data: memoryview, expected: Sequence[TensorDescription], what: str) -> dict[str, np.ndarray]:
    """The expected tensors of a blob, as read-only views of `data`, in the requested order. Raises ArtifactError if the
    blob is not valid safetensors, or does not contain exactly the expected tensors."""
    header, body = _parse_header(data, what)
    _check_extents(header, len(body), what)
    if {name for name in header if not name.startswith(PADDING)} != {tensor.name for tensor in expected}:
        raise ArtifactError(f"the {what} of the module differ from those that its manifest names")
    arrays = {}
    for tensor in expected:
        entry = header[tensor.name]
        element = ELEMENT_TYPES[tensor.dtype]
        if entry.dtype != element.storage or entry.shape != tensor.shape:
            raise ArtifactError(
                f"{what}: {tensor} is stored as {entry.dtype}{list(entry.shape)}", "export the module again"
            )
        start, end = entry.data_offsets
        array = np.frombuffer(body[start:end], dtype=element.numpy).reshape(entry.shape)
        if tensor.dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
            # Generated code assumes that these bytes are 0 or 1.
            raise ArtifactError(f"{what}: {tensor} has boolean values other than 0 and 1", "export the module again")
        array.flags.writeable = False
        arrays[tensor.name] = array
    return arrays


def _parse_header(data: memoryview, what: str) -> tuple[dict[str, TensorEntry], memoryview]:
    if len(data) < _LENGTH.size:
        raise ArtifactError(f"the {what} of the module are truncated")
    (length,) = _LENGTH.unpack(data[: _LENGTH.size])
    if length > min(len(data) - _LENGTH.size, _MAX_HEADER_BYTES):
        raise ArtifactError(f"the {what} of the module have no valid header")
    end = _LENGTH.size + length
    try:
        header = decode(data[_LENGTH.size : end], dict[str, TensorEntry])
    except FieldError as error:
        raise ArtifactError(f"the {what} of the module have no valid header: {error}") from error
    return header, data[end:]


def _check_extents(header: dict[str, TensorEntry], body_bytes: int, what: str) -> None:
    """Tensors must be consecutive without gaps or overlap, fill the body, and have the size that their shape
    implies."""
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        itemsize = _STORAGE_BYTES.get(entry.dtype)
        if itemsize is None or start != position or end - start != math.prod(entry.shape) * itemsize:
            raise ArtifactError(f"{what}: tensor {name!r} has a wrong type, offset or size")
        position = end
    if position != body_bytes:
        raise ArtifactError(f"{what}: {body_bytes} bytes are stored where {position} are described")


_STORAGE_BYTES = {element.storage: element.numpy.itemsize for element in ELEMENT_TYPES.values()}
