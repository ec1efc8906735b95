"""Triton Inference Server on this machine, for tests and benchmarks."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INSTALL = "tests/system/install_triton.sh"


@dataclass(frozen=True)
class Installation:
    """Results of `install_triton.sh`: an environment with the server and its clients, and Triton's public headers."""

    python: Path
    server: Path
    libraries: Path
    headers: Path


def installation() -> Installation | None:
    """The installation on this machine, or None."""
    folder = Path(os.environ.get("TENSORWRIGHT_TRITON", Path.home() / ".cache" / "tensorwright" / "triton"))
    packages = next(folder.glob("venv/lib/python3.*/site-packages/pytriton"), None)
    headers = folder / "include"
    if packages is None or not (headers / "triton" / "core" / "tritonbackend.h").exists():
        return None
    return Installation(
        folder / "venv" / "bin" / "python",
        packages / "tritonserver",
        packages.parent / "nvidia_pytriton.libs",
        headers,
    )


def free_ports(count: int) -> list[int]:
    """Unused ports of this machine."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def triton_server(
    installed: Installation,
    models: Path,
    backends: Path,
    ready: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, int, int, int]]:
    """Run a server; gives its HTTP, gRPC and metrics ports and its process id.

    Args:
        models, backends: the model repository, and the folder of backends.
        ready: names of models to wait for.
    """
    http, grpc, metrics = free_ports(3)
    command: list[str | Path] = [
        installed.server / "bin" / "tritonserver",
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        f"--cache-directory={installed.server / 'caches'}",
        *(f"--{name}-port={port}" for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics))),
        *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc")),
        "--allow-gpu-metrics=false",
    ]
    log = models.parent / "triton.log"
    variables = {**os.environ, **(environment or {}), "LD_LIBRARY_PATH": str(installed.libraries)}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=variables)
        try:
            for model in ready:
                _wait(process, f"http://127.0.0.1:{http}/v2/models/{model}/ready", log)
            yield http, grpc, metrics, process.pid
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                raise AssertionError(f"Triton ended: {log.read_text()[-3000:]}") from None
            time.sleep(0.05)
