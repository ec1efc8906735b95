"""Reading from sockets."""

from __future__ import annotations

import socket


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes. Raises EOFError if the peer closes the connection first, and OSError."""
    content = bytearray()
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            raise EOFError(f"the connection was closed after {len(content)} of {count} bytes")
        content += part
    return bytes(content)
