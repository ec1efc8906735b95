"""An RPC tracker and servers on this machine, ended with all their child processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_START_SECONDS = 300.0


def free_port() -> int:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


@contextmanager
def process(module: str, port: int, *options: str) -> Iterator[None]:
    """Run `python -m module` on a port, and end it with its children, which would outlive it otherwise."""
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    with _environment_without_torch() as environment:
        running = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        try:
            _wait_for(port)
            yield
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@contextmanager
def _environment_without_torch() -> Iterator[dict[str, str]]:
    """A process and its children do not find torch, with which TVM takes three times as long to load."""
    with TemporaryDirectory() as folder:
        Path(folder, "torch.py").write_text("raise ImportError('torch is hidden from this process')\n")
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        yield {**os.environ, "PYTHONPATH": path}


@contextmanager
def rpc_server(*options: str) -> Iterator[int]:
    """The port of a server."""
    port = free_port()
    with process("tvm.exec.rpc_server", port, *options):
        yield port


@contextmanager
def rpc_tracker() -> Iterator[int]:
    """The port of a tracker."""
    port = free_port()
    with process("tvm.exec.rpc_tracker", port):
        yield port


def wait_for_servers(device: str, count: int) -> None:
    """Wait until `count` servers have registered as free with the tracker of "KEY@HOST:PORT"."""
    from tvm import rpc

    key, _, address = device.partition("@")
    host, _, port = address.partition(":")
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        session = rpc.connect_tracker(host, int(port))
        free = session.summary()["queue_info"].get(key, {"free": 0})["free"]
        session.close()
        if free == count:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{free} of {count} servers are free")
