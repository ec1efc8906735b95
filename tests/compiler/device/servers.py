"""Device servers on this machine, under emulators."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def address_of(server: subprocess.Popen[str]) -> str:
    """Return the address of a server that was just started."""
    assert server.stdout is not None
    found = re.match(r"listening on [\d.]+:(\d+)", server.stdout.readline())
    assert found is not None
    return f"127.0.0.1:{found.group(1)}"


@contextmanager
def device_server(
    emulator: Sequence[str],
    program: Path,
    folder: Path,
    *options: object,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run a `tensorwright-server` under an emulator, with its modules in a folder; yield its address."""
    command = [*emulator, str(program), "0", "--folder", str(folder), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield address_of(process)
    finally:
        process.kill()
        process.wait()
