"""TVM's RPC over an encrypted session. Its client only supports plain TCP, so it connects to a local port, whose bytes
a process forwards over the session.

It is a process, not a thread, since the client holds the GIL while it waits for its socket.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from compiler.device.connection import CONNECT_SECONDS, Connection
from compiler.device.credentials import Credentials
from compiler.device.noise import HandshakeError
from compiler.errors import DeviceError, InternalError
from compiler.support.processes import receive_exactly

_MAGIC = 0xFF271  # RPC_MAGIC of tvm/rpc/base.py
_LONGEST_KEY = 4096
_INT = struct.Struct("@i")  # as TVM writes it
_LOOPBACK = "127.0.0.1"


def connect_rpc(address: str, credentials: Credentials | None, timeout: int) -> Any:
    """TVM's session with a server.

    Args:
        credentials: for a tensorwright-server with keys; None: a plain connection, also to TVM's own servers.
        timeout: session timeout of TVM's own servers, in seconds.

    Raises:
        DeviceError: with credentials: no server answers there, or it rejects this client or its kernels.
        InternalError: the forwarding process could not be started.
    """
    import schedules.ir.load_tvm  # noqa: F401  (TVM without torch)

    # isort: split
    from tvm import rpc

    if credentials is None:
        host, _, port = address.rpartition(":")
        return rpc.connect(host, int(port), session_timeout=timeout)
    process, answer = _start(address, credentials)
    session = rpc.connect(_LOOPBACK, answer["port"], key=answer["token"])
    session._tunnel = process  # kept as long as the session; it ends when the session's socket closes
    return session


def _start(address: str, credentials: Credentials) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """The process, and the address on which it listens."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "compiler.device.tunnel"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    keys = {"private": credentials.private_key.hex(), "device": credentials.device_key.hex()}
    with process.stdin, process.stdout:
        with contextlib.suppress(BrokenPipeError):  # its exit code is more informative
            process.stdin.write(json.dumps({"address": address, **keys}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
    if not line:
        raise InternalError(f"the tunnel to {address} ended with exit code {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        process.wait()
        raise DeviceError(answer["error"], answer["hint"])
    return process, answer


def main() -> None:
    """Main function of the process: reads keys from standard input, writes its address to standard output, as JSON."""
    request = json.loads(sys.stdin.readline())
    credentials = Credentials(bytes.fromhex(request["private"]), bytes.fromhex(request["device"]))
    try:
        tunnel = _Tunnel(Connection(request["address"], credentials, "kernels"))
    except DeviceError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)
        return
    print(json.dumps({"port": tunnel.port, "token": tunnel.token}), flush=True)
    tunnel.serve()


class _Tunnel:
    """A port for one client, authenticated by a token, since other users of this machine can reach the port."""

    def __init__(self, connection: Connection) -> None:
        self.token = secrets.token_hex(16)
        self._connection = connection
        self._listener = socket.create_server((_LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Forward bytes until one side closes."""
        with self._listener:
            local = self._accept()
        if local is None:
            self._connection.close()
            return
        threading.Thread(target=self._carry_back, args=(local,), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := local.recv(1 << 18):
                self._connection.send_bytes(data)
        self._connection.close()

    def _accept(self) -> socket.socket | None:
        """The client that knows the token, after the handshake of TVM's RPC."""
        self._listener.settimeout(CONNECT_SECONDS)
        while True:
            try:
                local, _ = self._listener.accept()
            except TimeoutError:
                return None
            local.settimeout(1.0)  # a client of this process sends at once
            try:
                if self._is_expected(local):
                    name = b"server:"
                    local.sendall(_INT.pack(_MAGIC) + _INT.pack(len(name)) + name)
                    local.settimeout(None)
                    local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return local
            except (OSError, EOFError):
                pass  # gone, or silent: not the right client
            local.close()

    def _is_expected(self, local: socket.socket) -> bool:
        magic, length = struct.unpack("@ii", receive_exactly(local, 2 * _INT.size))
        if magic != _MAGIC or not 0 <= length <= _LONGEST_KEY:
            return False
        return hmac.compare_digest(receive_exactly(local, length), f"client:{self.token}".encode())

    def _carry_back(self, local: socket.socket) -> None:
        with contextlib.suppress(OSError, HandshakeError):
            while data := self._connection.receive_bytes():
                local.sendall(data)
        with contextlib.suppress(OSError):
            local.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
