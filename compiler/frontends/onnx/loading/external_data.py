"""Initializers as arrays: inline or in an external file, checked before use, read when first needed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compiler.errors import InvalidModelError
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.values import Constant

MAXIMUM_ELEMENTS = 2**40


class TensorReader:
    """Reads the tensors of a model found in `folder` (None for a model in memory, which has no external files).

    With `owned`, the bytes of a large inline tensor are dropped from the model once they were read.
    """

    def __init__(self, folder: Path | None, owned: bool) -> None:
        self._folder = folder
        self._owned = owned

    def keep_data(self) -> None:
        """Drop no more bytes: tensors may be read again, since subgraphs are imported as often as it takes."""
        self._owned = False

    def constant(self, tensor: TensorProto, where: str) -> Constant:
        """A constant whose array is read later; its header, its size and its file are checked now.

        Raises InvalidModelError.
        """
        dtype = check_header(tensor, where)
        shape = tuple(tensor.dims)
        if tensor.data_location == TensorProto.EXTERNAL:
            path, offset, length = self._external_range(tensor, where)
            expected = _stored_bytes(dtype, shape)
            if length != expected:
                raise InvalidModelError(f"{where}: {length} bytes of external data, but shape and type need {expected}")
            return Constant.lazy(lambda: _read_external(path, offset, shape, dtype), shape, dtype)
        if tensor.HasField("raw_data"):
            found, expected = len(tensor.raw_data), _stored_bytes(dtype, shape)
            if dtype == "string" or found != expected:
                raise InvalidModelError(f"{where}: {found} bytes of data, but shape and type need {expected}")
        return Constant.lazy(lambda: self._inline_array(tensor, where), shape, dtype)

    def _inline_array(self, tensor: TensorProto, where: str) -> np.ndarray:
        try:
            array = numpy_helper.to_array(tensor)
        except Exception as error:  # onnx raises many kinds for malformed tensors
            raise InvalidModelError(f"{where}: its data cannot be read: {error}") from error
        if array.shape != tuple(tensor.dims):
            raise InvalidModelError(f"{where}: its data have shape {array.shape}, not {tuple(tensor.dims)}")
        if self._owned and tensor.HasField("raw_data") and array.nbytes > 4096:
            tensor.ClearField("raw_data")
        return array

    def _external_range(self, tensor: TensorProto, where: str) -> tuple[Path, int, int]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._external_file(entries.get("location", ""), where)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries["length"]) if "length" in entries else path.stat().st_size - offset
        except ValueError as error:
            raise InvalidModelError(f"{where}: offset or length of its external data is not a number") from error
        if offset < 0 or length < 0 or offset + length > path.stat().st_size:
            raise InvalidModelError(f"{where}: its external data lie outside {path.name!r} (truncated file?)")
        return path, offset, length

    def _external_file(self, location: str, where: str) -> Path:
        if self._folder is None:
            raise InvalidModelError(
                f"{where} is stored in the external file {location!r}, but the model was given in memory",
                "pass the path of the model file, or load the external data into the model first",
            )
        folder = self._folder.resolve()
        if not location or "\0" in location or os.path.isabs(location) or "\\" in location:
            raise InvalidModelError(f"{where}: the external file {location!r} is not a relative path")
        path = (folder / location).resolve()
        if not path.is_relative_to(folder):
            raise InvalidModelError(f"{where}: the external file {location!r} reaches outside the model's folder")
        if not path.is_file():
            raise InvalidModelError(
                f"{where}: the external file {location!r} is missing", f"put it next to the model, in {folder}"
            )
        return path


def check_header(tensor: TensorProto, where: str) -> str:
    """The dtype name of a tensor whose type and dims are sound. Raises InvalidModelError."""
    dtype = dtypes.dtype_name(tensor.data_type)
    if dtype is None:
        raise InvalidModelError(f"{where} has the unknown element type {tensor.data_type}")
    elements = 1
    for dim in tensor.dims:
        if dim < 0:
            raise InvalidModelError(f"{where} has a negative dimension: {list(tensor.dims)}")
        elements *= dim
    if elements > MAXIMUM_ELEMENTS:
        raise InvalidModelError(f"{where} has an absurd shape: {list(tensor.dims)}")
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
        _check_typed_data(tensor, dtype, elements, where)
    return dtype


def _check_typed_data(tensor: TensorProto, dtype: str, elements: int, where: str) -> None:
    """Check the count of values in float_data, int32_data and so on."""
    expected = elements
    if dtype.startswith("complex"):
        expected = 2 * elements
    elif dtype not in ("string", "bool") and dtypes.bits(dtype) < 8:
        expected = -(-elements * dtypes.bits(dtype) // 8)
    fields = (tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data)
    found = max(len(data) for data in (*fields, tensor.double_data, tensor.uint64_data))
    if found != expected:
        raise InvalidModelError(f"{where} holds {found} values, but its shape {list(tensor.dims)} needs {expected}")


def _stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    elements = int(np.prod(shape, dtype=np.int64))
    if dtype == "bool":
        return elements
    if dtype == "string":
        return -1
    if dtype.startswith("complex"):
        return elements * numpy_bytes(dtype)
    return -(-elements * dtypes.bits(dtype) // 8)


def numpy_bytes(dtype: str) -> int:
    """Bytes of one value as numpy holds it."""
    return dtypes.numpy_dtype(dtype).itemsize


def _read_external(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Map the file: nothing is copied until the values are used."""
    count = _stored_bytes(dtype, shape)
    if count == 0:
        return np.zeros(shape, dtypes.numpy_dtype(dtype))
    data = np.memmap(path, np.uint8, "r", offset, (count,))
    if dtype != "bool" and not dtype.startswith("complex") and dtypes.bits(dtype) < 8:
        tensor = TensorProto(data_type=dtypes.NUMBERS[dtype], dims=shape, raw_data=data.tobytes())
        return numpy_helper.to_array(tensor)
    array = np.asarray(data).view(
        dtypes.numpy_dtype(dtype).newbyteorder("<") if numpy_bytes(dtype) > 1 else dtypes.numpy_dtype(dtype)
    )
    return array.reshape(shape)


def dense_from_sparse(sparse: onnx.SparseTensorProto, where: str, reader: TensorReader) -> np.ndarray:
    """A sparse initializer as a dense array. Raises InvalidModelError."""
    values = reader.constant(sparse.values, where).array
    indices = reader.constant(sparse.indices, where).array
    dims = tuple(sparse.dims)
    if any(d < 0 for d in dims) or np.prod(dims, dtype=float) > MAXIMUM_ELEMENTS:
        raise InvalidModelError(f"{where} has an absurd shape: {list(dims)}")
    dense = np.zeros(dims, values.dtype)
    flat = np.ravel_multi_index(tuple(indices.T), dims) if indices.ndim == 2 else indices
    if flat.shape != values.shape or (flat.size and (flat.min() < 0 or flat.max() >= dense.size)):
        raise InvalidModelError(f"{where}: its sparse indices do not fit its shape")
    dense.reshape(-1)[flat] = values
    return dense
