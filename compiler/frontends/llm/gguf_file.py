"""A GGUF file: metadata and tensors, mapped and read a tensor at a time."""

from __future__ import annotations

import math
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import InvalidModelError, Refusal, StorageError, UnsupportedModelError
from compiler.frontends.gguf_blocks import readable_types
from compiler.frontends.llm.gguf_header import check_gguf_header
from compiler.frontends.llm.weights import Array, Matrix
from compiler.support.optional import optional_module

_SPLIT = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.gguf$")


class GgufFile:
    """The tensors of a GGUF file by name (a `Reader`), and its metadata."""

    def __init__(self, path: Path) -> None:
        """Open a file, and the other files of a model that is split.

        Raises:
            StorageError: it cannot be read, or another file of the model is missing.
            InvalidModelError: it is truncated or damaged, or is not the first file of a model that is split.
            UnsupportedModelError: a tensor has an element type that is not supported.
            MissingDependencyError: the package gguf is not installed.
        """
        self.path = path
        self._file = _opened(path)
        files = [self._file, *(_opened(other) for other in self._other_files())]
        self._tensors = {tensor.name: tensor for file in files for tensor in file.tensors}
        self._check_types()

    def _other_files(self) -> list[Path]:
        """The other files of a model that is split: name-00001-of-00003.gguf and so on."""
        count = self.value("split.count", 0)
        if not isinstance(count, int) or count <= 1:
            return []
        named = _SPLIT.match(self.path.name)
        if named is None or int(named["count"]) != count:
            raise InvalidModelError(
                f"{self.path} is one of {count} files of a model, and its name does not say which",
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
        """A tensor of two axes, or of more with all rows after one another, as it is stored."""
        tensor = self._tensors[name]
        *axes, depth = self.shape(name)
        rows = math.prod(axes)
        kind = tensor.tensor_type.name
        data: Array = np.asarray(tensor.data)
        if kind == "BF16":
            data = data.view(ml_dtypes.bfloat16)
        return Matrix(kind, data.reshape(rows, -1), depth)

    def vector(self, name: str) -> Array:
        """A tensor of a float type as float32."""
        tensor = self._tensors[name]
        gguf = optional_module("gguf", "generate", "reads GGUF files")
        values: Array = gguf.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        return values.reshape(self.shape(name)).astype(np.float32)

    def value(self, key: str, default: object = None) -> Any:
        """A value of the metadata; lists of strings and numbers as lists. Raises InvalidModelError on broken text."""
        field = self._file.fields.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except (UnicodeDecodeError, ValueError, IndexError) as error:
            raise InvalidModelError(f"{self.path}: its metadata {key!r} cannot be read: {error}") from error

    def required(self, key: str) -> Any:
        """As `value`. Raises InvalidModelError where there is no such key."""
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
    """gguf's reader, which makes a list an array: the package keeps an array, and reads the file, for each element."""
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
    """The `GGUFReader` of a file whose header is valid."""
    gguf = optional_module("gguf", "generate", "reads GGUF files")
    check_gguf_header(path, {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()})
    try:
        return _reader()(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        # What the package raises on missing or invalid bytes.
        raise InvalidModelError(
            f"{path} is a GGUF file that is truncated or damaged", "download or convert the file again"
        ) from error
