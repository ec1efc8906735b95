"""Servers of real processes: crashes, version changes and shutdown."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import MissingDependencyError, StorageError, UserError
from compiler.serving.workers.options import WorkerOptions
from compiler.serving.workers.supervisor import Supervisor, listen, serve
from tests.compiler.serving.server import dense_file

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}
BODY = json.dumps({"inputs": [TENSOR]}).encode()
HEAD = "POST /v2/models/dense/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
HEAD += f"Content-Length: {len(BODY)}\r\n\r\n"


class Processes:
    """A supervisor in a thread, and requests to its workers."""

    def __init__(self, supervisor: Supervisor, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.supervisor, self.port, self.loop = supervisor, port, loop

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def infer(self) -> int:
        return self.ask("POST", "/v2/models/dense/infer", BODY)[0]

    def call(self, function: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(function)

    def half_sent(self) -> socket.socket:
        """A request that a worker has begun to read but cannot answer yet."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        client.sendall(HEAD.replace("Connection: close", "Expect: 100-continue\r\nConnection: close").encode())
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(BODY[:10])
        return client


@contextmanager
def processes(path: Path, workers: int = 1) -> Iterator[Processes]:
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    options = WorkerOptions(models=({"name": "dense", "path": str(path)},), workers=workers)
    ready = threading.Event()
    made: dict[str, Any] = {}

    async def run() -> None:
        made["loop"] = asyncio.get_running_loop()
        made["supervisor"] = Supervisor(options, sock, started=ready.set)
        await made["supervisor"].run()

    def work() -> None:
        try:
            asyncio.run(run())
        except UserError as error:
            made["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    if "error" in made:
        thread.join()
        raise made["error"]
    try:
        yield Processes(made["supervisor"], port, made["loop"])
    finally:
        made["loop"].call_soon_threadsafe(made["supervisor"].stop)
        thread.join()


def version(folder: Path, number: int) -> Path:
    (folder / str(number)).mkdir(parents=True)
    return dense_file(folder / str(number), "model")


def test_a_worker_that_dies_fails_what_it_was_answering_alone_and_shutdown_drains(tmp_path: Path) -> None:
    with processes(dense_file(tmp_path)) as server:
        assert server.infer() == 200
        in_flight = server.half_sent()
        (worker,) = server.supervisor.processes
        os.kill(worker, signal.SIGKILL)
        assert _ended(in_flight)
        assert server.infer() == 200
        assert server.supervisor.processes != [worker]
        # Shutdown: what has begun is answered, what comes is not.
        in_flight = server.half_sent()
        server.call(server.supervisor.stop)
        while _reachable(server.port):
            time.sleep(0.05)
        in_flight.sendall(BODY[10:])
        assert _all_of(in_flight).startswith(b"HTTP/1.1 200")


def _ended(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def _reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=120).close()
    except OSError:
        return False
    return True


def _all_of(client: socket.socket) -> bytes:
    content = b""
    while part := client.recv(1 << 16):
        content += part
    return content


def test_a_new_version_takes_over_in_all_workers_without_a_failed_request(tmp_path: Path) -> None:
    version(tmp_path, 1)
    with processes(tmp_path, workers=2) as server:
        statuses: list[int] = []
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                statuses.append(server.infer())

        clients = [threading.Thread(target=client) for _ in range(2)]
        for each in clients:
            each.start()
        version(tmp_path, 2)
        assert server.ask("POST", "/v2/repository/models/dense/load", b"{}")[0] == 200
        version(tmp_path, 3).write_bytes(b"nothing")
        status, answer = server.ask("POST", "/v2/repository/models/dense/load", b"{}")
        assert status == 400
        assert b"not a" in answer or b"module" in answer
        stop.set()
        for each in clients:
            each.join()
        assert set(statuses) == {200}
        for _ in range(8):  # whichever worker answers
            assert json.loads(server.ask("GET", "/v2/models/dense")[1])["versions"] == ["2"]
        shutil.rmtree(tmp_path / "3")
        requests = b'requests_total{model="dense",route="infer",status="200"} ' + f"{len(statuses)}.0".encode()
        while requests not in server.ask("GET", "/metrics")[1]:  # of both workers together, a moment later
            time.sleep(0.05)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "dense.twm"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"dense\.twm"), processes(path):
        pass
    with listen("127.0.0.1", 0) as sock:
        sock.listen()
        with pytest.raises(StorageError, match="cannot be served"):
            listen("127.0.0.1", sock.getsockname()[1])


def test_serve_command_answers_and_ends_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compiler.cli", "serve", str(dense_file(tmp_path)), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:")
        connection = http.client.HTTPConnection(line.split("//")[1].strip(), timeout=120)
        connection.request("POST", "/v2/models/dense/infer", BODY)
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_worker_loads_neither_the_compiler_nor_torch(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
import numpy as np
import compiler.serving.workers.worker
from compiler.serving.configuration import model_options
from compiler.serving.repository import Repository
from compiler.serving.request import Request

async def main():
    repository = Repository([model_options({{"path": {str(dense_file(tmp_path))!r}}}, "a model")])
    await repository.start()
    await repository.service("dense").infer(Request({{"x": np.ones((1, 16), np.float32)}}))
    await repository.close()

asyncio.run(main())
heavy = ("torch", "onnx", "tvm", "compiler.driver", "compiler.passes", "compiler.frontends", "schedules.kernels")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_packages_are_named_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orjson", None)
    with pytest.raises(MissingDependencyError, match="'orjson'"):
        serve(WorkerOptions(), "127.0.0.1", 0, drain_seconds=0, started=print)
