"""A GGUF file: metadata and tensors, mapped and read a tensor at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import InvalidModelError, Refusal, StorageError, UnsupportedModelError
from compiler.frontends.gguf_blocks import readable_types
from compiler.frontends.llm.gguf_header import check_gguf_header
from compiler.frontends.llm.weights import Array, Matrix
from compiler.support.optional import optional_module


class GgufFile:
    """The tensors of a GGUF file by name (a `Reader`), and its metadata."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            StorageError: it cannot be read.
            InvalidModelError: it is truncated or damaged.
            UnsupportedModelError: a tensor has an element type that is not supported.
            MissingDependencyError: the package gguf is not installed.
        """
        gguf = optional_module("gguf", "generate", "reads GGUF files")
        self.path = path
        check_gguf_header(path, {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()})
        try:
            self._file = gguf.GGUFReader(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error}") from error
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeDecodeError, MemoryError) as error:
            # What the package raises on missing or invalid bytes.
            raise InvalidModelError(
                f"{path} is a GGUF file that is truncated or damaged", "download or convert the file again"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._file.tensors}
        self._check_types()

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
        wrong = [each for each in self._file.tensors if each.tensor_type.name not in known]
        if wrong:
            raise UnsupportedModelError(
                [Refusal(each.tensor_type.name, each.name, "this element type is not supported") for each in wrong],
                f"quantize it to one of {', '.join(known)}",
            )
