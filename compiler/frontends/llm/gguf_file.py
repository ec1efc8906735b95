"""GGUF files: metadata and memory-mapped tensors, read one at a time; headers are validated first."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import InvalidModelError, Refusal, StorageError, UnsupportedModelError
from compiler.frontends.gguf_blocks import readable_types
from compiler.frontends.llm.weights import Array, Matrix
from compiler.support.optional import optional_module

# Validates the header of a GGUF file before it is read by the gguf package, which trusts all counts.


# Bytes of the scalar types by number; strings and arrays have other numbers.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _TEXT, _LIST = 4, 8, 9
_VERSIONS = (2, 3)
_MAX_ELEMENTS = 1 << 22  # in all lists: vocabularies have fewer than a million, and the package is slow
_MAX_AXES = 4
_ALIGNMENT = "general.alignment"


def check_gguf_header(path: Path, blocks: Mapping[int, tuple[int, int]]) -> None:
    """Check that a header's contents are where it states, and that tensors neither overlap nor exceed the file.

    Args:
        blocks: elements and bytes per block, by element type number.

    Raises:
        StorageError: the file cannot be read.
        InvalidModelError: it is truncated or damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Header(data).check(blocks)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except (ValueError, struct.error, UnicodeDecodeError) as error:  # ValueError: from an empty file
        raise InvalidModelError(
            f"{path} is a GGUF file that is truncated or damaged: {error}", "download or convert the file again"
        ) from error


class _Header:
    """A position in the file; reading past its end raises struct.error, invalid contents ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0
        self._order, self._elements, self._alignment = "<", 0, 32

    def check(self, blocks: Mapping[int, tuple[int, int]]) -> None:
        """See `check_gguf_header`."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        (version,) = struct.unpack_from("<I", self._data, self._at)
        if not version & 0xFFFF:
            self._order = ">"
        if self._integer("I") not in _VERSIONS:
            raise ValueError("its version is not 2 or 3")
        tensors, entries = self._integer("Q"), self._integer("Q")
        for _ in range(entries):
            self._entry()
        extents = [self._tensor(blocks) for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        end, last = 0, ""
        for offset, size, name in sorted(extents):
            if offset < end:
                raise ValueError(f"the tensors {last!r} and {name!r} overlap")
            end, last = offset + size, name
        if start + end > len(self._data):
            raise ValueError(f"the tensor {last!r} ends after the end of the file")

    def _entry(self) -> None:
        """Check a metadata key and its value."""
        key, kind = self._text(), self._integer("I")
        if key == _ALIGNMENT:
            (value,) = struct.unpack_from(self._order + "I", self._data, self._at)
            if kind != _UINT32 or value & (value - 1) or not value:
                raise ValueError(f"{_ALIGNMENT} is {value}, not a power of two")
            self._alignment = value
        if kind == _TEXT:
            self._text()
        elif kind == _LIST:
            self._list(key)
        else:
            self._skip(self._size(kind))

    def _list(self, key: str) -> None:
        kind, count = self._integer("I"), self._integer("Q")
        self._elements += count
        if self._elements > _MAX_ELEMENTS:
            raise ValueError(f"its metadata up to {key[:80]!r} have {self._elements} elements")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._integer("Q"))
        else:
            self._skip(count * self._size(kind))

    def _tensor(self, blocks: Mapping[int, tuple[int, int]]) -> tuple[int, int, str]:
        """Return offset, bytes and name of a tensor."""
        name, axes = self._text(), self._integer("I")
        if not 1 <= axes <= _MAX_AXES:
            raise ValueError(f"the tensor {name[:80]!r} has {axes} axes")
        shape = [self._integer("Q") for _ in range(axes)]
        kind, offset = self._integer("I"), self._integer("Q")
        elements, size = blocks.get(kind, (1, 0))  # unknown types are rejected by name later
        if 0 in shape or shape[0] % elements or offset % self._alignment:
            raise ValueError(f"the tensor {name[:80]!r} has the shape {shape} at {offset}")
        return offset, math.prod(shape) // elements * size, name

    def _text(self) -> str:
        length = self._integer("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode()

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self._at:
            raise ValueError("it ends within its header")
        self._at += count

    def _integer(self, form: str) -> int:
        (value,) = struct.unpack_from(self._order + form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    @staticmethod
    def _size(kind: int) -> int:
        if kind not in _SCALARS:
            raise ValueError(f"a value of its metadata has the type {kind}")
        return _SCALARS[kind]


_SPLIT = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.gguf$")


class GgufFile:
    """The tensors of a GGUF file by name (a `Reader`), and its metadata."""

    def __init__(self, path: Path) -> None:
        """Open a file, and the other files of a split model.

        Raises:
            StorageError: it cannot be read, or another file of the model is missing.
            InvalidModelError: it is truncated or damaged, or is not the first file of a split model.
            UnsupportedModelError: a tensor has an element type that is unsupported.
            MissingDependencyError: the package gguf is not installed.
        """
        self.path = path
        self._file = _opened(path)
        files = [self._file, *(_opened(other) for other in self._other_files())]
        self._tensors = {tensor.name: tensor for file in files for tensor in file.tensors}
        self._check_types()

    def _other_files(self) -> list[Path]:
        """Return the other files of a split model: name-00001-of-00003.gguf and so on."""
        count = self.value("split.count", 0)
        if not isinstance(count, int) or count <= 1:
            return []
        named = _SPLIT.match(self.path.name)
        if named is None or int(named["count"]) != count:
            raise InvalidModelError(
                f"{self.path} is one of {count} files of a model, but its name does not say which",
                f"give the files their names again: NAME-00001-of-{count:05}.gguf",
            )
        names = [f"{named['name']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
        if self.path.name != names[0]:
            raise InvalidModelError(f"{self.path} is one of {count} files of a model", f"give the first: {names[0]}")
        paths = [self.path.with_name(name) for name in names[1:]]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise StorageError(
                f"{self.path.parent} lacks {len(missing)} of {count} files of weights: {', '.join(missing[:4])}",
                "download the model again",
            )
        return paths

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, slowest axis first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def matrix(self, name: str) -> Matrix:
        """Return a 2-D tensor as stored; more axes are flattened to rows."""
        tensor = self._tensors[name]
        *axes, depth = self.shape(name)
        rows = math.prod(axes)
        kind = tensor.tensor_type.name
        data: Array = np.asarray(tensor.data)
        if kind == "BF16":
            data = data.view(ml_dtypes.bfloat16)
        return Matrix(kind, data.reshape(rows, -1), depth)

    def vector(self, name: str) -> Array:
        """Return a tensor of a float type as float32."""
        tensor = self._tensors[name]
        gguf = optional_module("gguf", "generate", "reads GGUF files")
        values: Array = gguf.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        return values.reshape(self.shape(name)).astype(np.float32)

    def value(self, key: str, default: object = None) -> Any:
        """Return a metadata value; lists of strings and numbers as lists. Raises InvalidModelError on invalid text."""
        field = self._file.fields.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except (UnicodeDecodeError, ValueError, IndexError) as error:
            raise InvalidModelError(f"{self.path}: its metadata {key!r} cannot be read: {error}") from error

    def required(self, key: str) -> Any:
        """Like `value`. Raises InvalidModelError if there is no such key."""
        found = self.value(key)
        if found is None:
            raise InvalidModelError(f"{self.path} lacks the metadata {key!r}", "convert the model again")
        return found

    def _check_types(self) -> None:
        known = readable_types()
        wrong = [each for each in self._tensors.values() if each.tensor_type.name not in known]
        if wrong:
            raise UnsupportedModelError(
                [Refusal(each.tensor_type.name, each.name, "this element type is not supported") for each in wrong],
                f"quantize it to one of {', '.join(known)}",
            )


@cache
def _reader() -> Any:
    """Return gguf's reader, patched to read a list as one array: the package keeps an array, and reads the file, per
    element."""
    gguf: Any = optional_module("gguf", "generate", "reads GGUF files")
    kinds, base = gguf.GGUFValueType, gguf.GGUFReader

    class Reader(base):  # type: ignore[misc, valid-type]  # of a package without types
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Array], list[int], list[Any]]:
            if raw_type != kinds.ARRAY:
                fields: tuple[int, list[Array], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
                return fields
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            parts, at, inner = [kind, count], orig_offs + 12, kinds(int(kind[0]))
            if inner == kinds.STRING:
                size_of = struct.Struct(">Q" if count.dtype.byteorder == ">" else "<Q").unpack_from
                content: Any = np.asarray(self.data)
                for _ in range(int(count[0])):
                    (size,) = size_of(content, at)
                    parts.append(content[at + 8 : at + 8 + size])
                    at += 8 + size
            else:
                parts.append(self._get(at, self.gguf_scalar_to_np[inner], int(count[0])))
                at += int(parts[-1].nbytes)
            return at - orig_offs, parts, list(range(2, len(parts))), [kinds.ARRAY, inner]

    return Reader


def _opened(path: Path) -> Any:
    """Return the `GGUFReader` of a file whose header is valid."""
    gguf = optional_module("gguf", "generate", "reads GGUF files")
    check_gguf_header(path, {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()})
    try:
        return _reader()(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        # Raised by the package on missing or invalid bytes.
        raise InvalidModelError(
            f"{path} is a GGUF file that is truncated or damaged", "download or convert the file again"
        ) from error
