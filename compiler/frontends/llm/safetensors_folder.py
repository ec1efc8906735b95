"""Weights in safetensors files, or older ones of torch.save: one file, or shards with an index; memory-mapped, and read
one tensor at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import InvalidModelError, OptionError, StorageError, storage_errors
from compiler.frontends.llm.torch_files import stored_tensors
from compiler.frontends.llm.weights import Array, Matrix

_SINGLE = "model.safetensors"
_OLDER = {_SINGLE: "pytorch_model.bin", "adapter_model.safetensors": "adapter_model.bin"}  # by torch.save
_LONGEST_NAME = 255  # bytes, in common file systems
_MAX_HEADER = 32 << 20  # some 300,000 tensors
_TYPES: dict[str, tuple[str, Any]] = {
    "F32": ("F32", np.float32),
    "F16": ("F16", np.float16),
    "BF16": ("BF16", ml_dtypes.bfloat16),
    "F64": ("F32", np.float64),
}
_OTHERS: dict[str, Any] = {  # types of quantized weights
    "I8": np.int8,
    "U8": np.uint8,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


@dataclass(frozen=True)
class _Entry:
    """One tensor: its file, element type, shape, and byte range."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, path: Path, described: Any, offset: int) -> _Entry:
        """Return the entry for its description in the header; data begin at `offset`."""
        start, end = (int(at) + offset for at in described["data_offsets"])
        return cls(path, str(described["dtype"]), tuple(int(size) for size in described["shape"]), start, end)

    def fits(self, least: int, most: int) -> bool:
        """True if it is within these bytes of the file, and its length matches its shape."""
        inside = least <= self.start <= self.end <= most and all(0 <= size <= most for size in self.shape)
        dtype = self.numpy
        return inside and (dtype is None or self.end - self.start == math.prod(self.shape) * dtype.itemsize)

    @property
    def numpy(self) -> np.dtype[Any] | None:
        """The numpy element type; None if there is none."""
        if self.dtype in _TYPES:
            return np.dtype(_TYPES[self.dtype][1])
        return np.dtype(_OTHERS[self.dtype]) if self.dtype in _OTHERS else None

    def mapped(self) -> Array:
        """Return the memory-mapped tensor, of a type that numpy has."""
        dtype = self.numpy
        assert dtype is not None
        if self.start == self.end:
            return np.empty(self.shape, dtype)
        raw = np.memmap(self.path, np.uint8, "r", self.start, (self.end - self.start,))
        return raw.view(dtype).reshape(self.shape)


class SafetensorsFolder:
    """The tensors of a folder by name (a `Reader`)."""

    def __init__(self, folder: Path, single: str = _SINGLE) -> None:
        """Open the files.

        Args:
            folder: the folder of the files.
            single: the file's name if there is no index.

        Raises:
            StorageError: a file is missing or cannot be read.
            InvalidModelError: a file is truncated or damaged, or lacks a tensor that the index names.
        """
        self.origin = str(folder)
        self._entries: dict[str, _Entry] = {}
        for path, names in _files(folder, single).items():
            entries = _pickled(path) if path.suffix == ".bin" else _header(path)
            missing = sorted(set(names or ()) - set(entries))
            if missing:
                raise InvalidModelError(f"{path} lacks the tensor {missing[0]!r} that the folder's index names")
            self._entries.update(entries)

    @property
    def is_safetensors(self) -> bool:
        """True if the files are safetensors."""
        return all(entry.path.suffix != ".bin" for entry in self._entries.values())

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, slowest axis first."""
        return self._entries[name].shape

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all tensors."""
        return [entry.shape for entry in self._entries.values()]

    def matrix(self, name: str) -> Matrix:
        """Return a 2-D tensor, memory-mapped; more axes are flattened to rows."""
        kind, data = self._read(name)
        if data.dtype == np.float64:
            data = data.astype(np.float32)
        return Matrix(kind, data.reshape(-1, data.shape[-1]), data.shape[-1])

    def vector(self, name: str) -> Array:
        """Return a tensor as float32."""
        return self._read(name)[1].astype(np.float32)

    def dtype(self, name: str) -> str:
        """Return the element type by numpy's name, or the file's if numpy has none."""
        entry = self._entries[name]
        return entry.dtype if entry.numpy is None else str(entry.numpy)

    def stored(self, name: str) -> Array:
        """Return a tensor of any type as stored, memory-mapped. Raises OptionError for a type that numpy lacks."""
        entry = self._entries[name]
        if entry.numpy is None:
            raise _unsupported(name, entry, (*_TYPES, *_OTHERS))
        return entry.mapped()

    def _read(self, name: str) -> tuple[str, Array]:
        entry = self._entries[name]
        if entry.dtype not in _TYPES:
            raise _unsupported(name, entry, tuple(_TYPES))
        return _TYPES[entry.dtype][0], entry.mapped()


def _unsupported(name: str, entry: _Entry, supported: tuple[str, ...]) -> OptionError:
    return OptionError(
        f"{entry.path}: tensor {name!r} has element type {entry.dtype}, which is not supported",
        f"supported: {', '.join(supported)}; of quantized weights config.json says how, in 'quantization_config'",
    )


def _files(folder: Path, single: str) -> dict[Path, list[str] | None]:
    """Return the files, with the tensor names that an index lists for each."""
    for name in (single, _OLDER[single]):
        if (folder / f"{name}.index.json").exists():
            return _shards(folder / f"{name}.index.json")
        if (folder / name).exists():
            return {folder / name: None}
    raise StorageError(
        f"{folder} holds no weights: neither {single} nor {single}.index.json",
        "save the model with save_pretrained(folder), which writes safetensors",
    )


def _shards(index: Path) -> dict[Path, list[str] | None]:
    """Return the files that an index names, with their tensors."""
    folder = index.parent
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(each, str) for each in table.values()):
        raise InvalidModelError(f"{index} has no table 'weight_map'")
    files: dict[Path, list[str] | None] = {}
    for name, file in table.items():
        if not _is_file_name(file):
            raise InvalidModelError(f"{index} names the file {file[:80]!r}, which is not in its folder")
        names = files.setdefault(folder / file, [])
        assert names is not None
        names.append(name)
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise StorageError(
            f"{folder} lacks {len(missing)} of {len(files)} files of weights: {', '.join(missing[:3])}",
            "download them as well",
        )
    return files


def _is_file_name(name: str) -> bool:
    return (
        Path(name).name == name
        and name not in ("", "..")
        and name.isprintable()
        and len(name.encode()) <= _LONGEST_NAME
    )


def _header(path: Path) -> dict[str, _Entry]:
    """Parse the header: the location of each tensor, all validated to be within the file."""
    _check_is_file(path)
    with storage_errors(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(size - 8, _MAX_HEADER) else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {name: _Entry.of(path, each, 8 + length) for name, each in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidModelError(f"{path} is truncated or not a safetensors file", "download it again") from error
    for name, entry in entries.items():
        if not entry.fits(8 + length, size):
            raise InvalidModelError(f"{path} is truncated or damaged at tensor {name!r}", "download it again")
    return entries


def _pickled(path: Path) -> dict[str, _Entry]:
    """Find the tensors in a file of torch.save, all validated to be within their storages."""
    _check_is_file(path)
    with storage_errors(path):
        file = path.open("rb")
    try:
        with file:
            tensors = stored_tensors(file)
    except Exception as error:  # whatever the file's program does
        raise InvalidModelError(
            f"{path} cannot be read without running it as a program: {str(error)[:200] or type(error).__name__}",
            'write safetensors: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{path.parent}').save_pretrained('FOLDER')\"",
        ) from error
    entries = {}
    for name, (dtype, shape, first, start, end) in tensors.items():
        entry = _Entry(path, dtype, shape, 0, 0)
        width = entry.numpy.itemsize if entry.numpy is not None else 0
        begin = start + first * width
        entries[name] = replace(entry, start=begin, end=begin + math.prod(shape) * width)
        if not entries[name].fits(start, end):
            raise InvalidModelError(f"{path} is truncated or damaged at tensor {name!r}", "download it again")
    return entries


def _check_is_file(path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for its writer
        raise StorageError(f"{path} is not a regular file")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises StorageError if it cannot be read, or is a device, which may be endless."""
    with storage_errors(path):
        if path.exists() and not path.is_file():
            raise StorageError(f"{path} is not a file")
        return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file with an object.

    Raises:
        StorageError: it cannot be read.
        InvalidModelError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidModelError(f"{path} is not a JSON object")
    return value
