"""python -m tests.compiler.serving.soak [--connections N] [--json FILE]: connections one after another leave nothing.

A worker's memory and file descriptors after a tenth of the connections, and after all of them; fails where descriptors
grew, or memory by more than 4 MB. Every tenth connection breaks off in the middle of its request.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.compiler.serving.server import dense_file
from tests.compiler.serving.workers.test_supervisor import HEAD, Processes, processes

_GROWTH_KB = 4096


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, processes(dense_file(Path(folder))) as server:
        (worker,) = server.supervisor.processes
        tenth = options.connections // 10
        _connect(server, tenth)
        before = _state(worker)
        _connect(server, options.connections - tenth)
        after = _state(worker)
    found = {
        "connections": options.connections,
        "memory_kb": [before[0], after[0]],
        "descriptors": [before[1], after[1]],
    }
    print(
        f"{options.connections} connections: memory {before[0]} -> {after[0]} kB, descriptors {before[1]} -> {after[1]}"
    )
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    return int(after[1] > before[1] or after[0] > before[0] + _GROWTH_KB)


def _connect(server: Processes, count: int) -> None:
    for number in range(count):
        if number % 10 == 9:
            with socket.create_connection(("127.0.0.1", server.port)) as broken:
                broken.sendall(HEAD.encode())
        elif server.infer() != 200:
            raise RuntimeError("a request failed")


def _state(worker: int) -> tuple[int, int]:
    """Resident memory in kB, and open file descriptors, once connections have ended."""
    time.sleep(1)
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return memory, len(os.listdir(f"/proc/{worker}/fd"))


if __name__ == "__main__":
    sys.exit(main())
