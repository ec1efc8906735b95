"""Messages between a server and its sandboxes: a length followed by MessagePack, with an extension type for numpy
arrays.

Nothing is unpickled: what a sandbox sends comes from a process that has read a stranger's data.
"""

from __future__ import annotations

import socket
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from compiler.support.processes import receive_exactly

LENGTH_BYTES = 8
_ARRAY = 1
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def pack(message: object) -> bytearray:
    """Encode a message with a length prefix."""
    content = bytearray(LENGTH_BYTES)
    _ENCODER.encode_into(message, content, LENGTH_BYTES)
    content[:LENGTH_BYTES] = (len(content) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little")
    return content


def unpack(content: bytes | bytearray | memoryview) -> Any:
    """Decode a message without its length prefix."""
    return _DECODER.decode(content)


def send(sock: socket.socket, message: object) -> None:
    """Send over a blocking socket."""
    sock.sendall(pack(message))


def receive(sock: socket.socket) -> Any:
    """Receive from a blocking socket. Raises EOFError where the other end closed."""
    try:
        return unpack(receive_exactly(sock, int.from_bytes(receive_exactly(sock, LENGTH_BYTES), "little")))
    except ConnectionError as error:
        raise EOFError from error


def _encoded(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value).__name__} cannot be sent")
    head = _ENCODER.encode([str(value.dtype), value.shape])
    return msgspec.msgpack.Ext(_ARRAY, len(head).to_bytes(2, "little") + head + value.tobytes())


def _decoded(code: int, data: memoryview) -> Any:
    size = int.from_bytes(data[:2], "little")
    name, shape = msgspec.msgpack.decode(data[2 : 2 + size])
    dtype = _DTYPES[name] if name in _DTYPES else np.dtype(name)
    return np.frombuffer(data[2 + size :], dtype).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encoded)
_DECODER = msgspec.msgpack.Decoder(ext_hook=_decoded)
