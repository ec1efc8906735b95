"""The suite's server, its resource usage, and a process that polls its health."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """A running server.

    Attributes:
        process: the supervisor's process.
        log: the file with its output.
    """

    port: int
    process: subprocess.Popen[str]
    log: Path

    def workers(self) -> set[int]:
        """Process IDs of the workers."""
        return {each for each in _children(self.process.pid) if b"workers.worker" in _command(each)}

    def memory(self) -> int:
        """Bytes used by its processes; shared memory counts once."""
        return sum(_proportional(each) for each in _descendants(self.process.pid))

    def processes(self) -> int:
        """Number of its processes."""
        return len(_descendants(self.process.pid))


@contextlib.contextmanager
def serve(log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Context manager of a server. Raises RuntimeError if it does not start."""
    command = [sys.executable, "-m", "compiler.cli", "serve", "--port", "0", *flags]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(environment or {})}
        ) as process,
    ):
        assert process.stdout is not None
        said = re.search(r":(\d+)$", process.stdout.readline().strip())
        if said is None:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        try:
            yield Served(int(said[1]), process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class Health:
    """Observations of a process that polls the health: answers, the slowest in seconds, and failures."""

    asked: int = 0
    slowest: float = 0.0
    failed: int = 0


class Watch:
    """Polls the health every 50 ms from a separate process, independent of the suite's other work."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", __name__, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.take()

    def take(self) -> Health:
        """Observations since the last call, at least one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        asked, slowest, failed = self._process.stdout.readline().split()
        return Health(int(asked), float(slowest), int(failed))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _watch(port: int) -> None:
    health = Health()
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    while True:
        begun = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), 30) as sock:
                sock.settimeout(30)
                sock.sendall(request)
                health.failed += b" 200 " not in sock.recv(4096)
        except OSError:
            health.failed += 1
        health.asked += 1
        health.slowest = max(health.slowest, time.monotonic() - begun)
        if select.select([sys.stdin], [], [], 0.05)[0]:
            if not sys.stdin.readline():
                return
            print(health.asked, health.slowest, health.failed, flush=True)
            health = Health()


def _children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def _descendants(process: int) -> list[int]:
    found = [process]
    for each in found:
        found += _children(each)
    return found


def _command(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _proportional(process: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
