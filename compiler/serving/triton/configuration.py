"""A model's `config.pbtxt` for Triton, from what its module says of itself."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.artifact import Manifest, TensorDescription
from compiler.errors import OptionError

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
BACKEND = "tensorwright"


def configuration_text(name: str, manifest: Manifest, most_rows: int, instances: int) -> str:
    """The text of `config.pbtxt`.

    Args:
        name: of the model in Triton.
        most_rows: how many rows a batch has at most; 0: requests are not put together.
        instances: how many runs compute at a time.

    Raises:
        OptionError: Triton has no name for an element type.
    """
    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(BACKEND)}",
        f"max_batch_size: {most_rows}",
        *_tensors("input", manifest.inputs, most_rows > 0),
        *_tensors("output", manifest.outputs, most_rows > 0),
        f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]",
    ]
    if most_rows:
        # A run takes what waits when it begins, and waits for nothing.
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: Sequence[TensorDescription], batched: bool) -> list[str]:
    described = [_tensor(each, batched) for each in tensors]
    return [f"{kind} [", ",\n".join(described), "]"] if described else []


def _tensor(tensor: TensorDescription, batched: bool) -> str:
    if tensor.dtype not in TYPES:
        raise OptionError(f"Triton has no element type {tensor.dtype}, which {tensor.name!r} has")
    sizes = [str(size) if isinstance(size, int) else "-1" for size in tensor.shape[batched:]]
    # Triton has no tensors without dimensions: clients send and get one of size 1.
    shape = f"dims: [ {', '.join(sizes)} ]" if sizes else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f"  {{ name: {_quoted(tensor.name)} data_type: {TYPES[tensor.dtype]} {shape} }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'
