"""Tensors in files of torch.save (pytorch_model.bin), located without PyTorch.

Their pickled program may only build dictionaries and describe tensors, as with torch.load(weights_only=True). Pickle's
Python code is used: the C code allocates as much as a program asks for.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

_TYPES = {  # of storages: names of safetensors
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "IntStorage": "I32",
    "LongStorage": "I64",
}
_MAX_PROGRAM_BYTES = 32 << 20
_LOCAL_HEADER = 30  # bytes, before the name of a file


class StoredTensor(NamedTuple):
    """A contiguous tensor: its type by the name of safetensors, its shape, first element, and its storage's range."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    start: int
    end: int


def stored_tensors(file: BinaryIO) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name. Raises ValueError, or any other exception, if it is damaged or holds
    anything else."""
    with zipfile.ZipFile(file) as archive:
        files = {each.filename: each for each in archive.infolist()}
        if any(each.compress_type != zipfile.ZIP_STORED for each in files.values()):
            raise ValueError("its parts are compressed")
        program = next(name for name in files if name.endswith("/data.pkl"))
        folder = program.removesuffix("data.pkl")
        if files[program].file_size > _MAX_PROGRAM_BYTES:
            raise ValueError(f"its program has {files[program].file_size} bytes")
        if f"{folder}byteorder" in files and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it is of a big-endian machine")

        def range_of(key: str) -> tuple[int, int]:
            entry = files[f"{folder}data/{key}"]
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            start = entry.header_offset + _LOCAL_HEADER + names
            return start, start + entry.file_size

        tensors = _Program(io.BytesIO(archive.read(program)), range_of).load()
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(each, StoredTensor) for name, each in tensors.items()
    ):
        raise ValueError("it holds more than tensors by name")
    return dict(tensors)


class _Table(dict[Any, Any]):
    """OrderedDict, without the attributes that PyTorch gives it."""

    def __setstate__(self, state: object) -> None:
        pass


class _Call:
    """A function that a program may call; without attributes that it could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Program(pickle._Unpickler):
    """Runs a file's program."""

    def __init__(self, file: io.BytesIO, range_of: Callable[[str], tuple[int, int]]) -> None:
        super().__init__(file, encoding="utf-8")
        self._range_of = range_of

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few objects that tensors need. Raises ValueError for others."""
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return _Table
        if full == "torch._utils._rebuild_tensor_v2":
            return _Call(_tensor)
        if full == "torch._utils._rebuild_parameter":
            return _Call(lambda tensor, *_: tensor)
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise ValueError(f"it calls {full[:80]}")

    def persistent_load(self, pid: Any) -> tuple[str, int, int]:
        """Return the type of a storage, and its range in the file."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _TYPES.values():
            raise ValueError("it holds a storage of an unknown kind")
        return dtype, *self._range_of(key)


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """Return a tensor of a storage. Raises ValueError unless it is contiguous."""
    dtype, start, end = storage
    if not all(isinstance(size, int) and size >= 0 for size in (first, *shape)):
        raise ValueError("a tensor has no sizes")
    count = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != count:
            raise ValueError("a tensor is transposed, or a part of another")
        count *= size
    return StoredTensor(dtype, tuple(shape), first, start, end)
