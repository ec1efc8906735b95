"""A server in a thread of the tests, and a simple client."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.serving.app.application import Application
from compiler.serving.app.create import AppOptions, create_app
from compiler.serving.configuration import ModelOptions
from compiler.serving.workers.http_server import HttpOptions, Server
from compiler.serving.workers.supervisor import listen


@dataclass
class Answer:
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Running:
    """A running server."""

    port: int
    app: Application
    server: Server

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request on a new connection; a body other than bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, content, dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())
        finally:
            connection.close()

    def infer(self, model: str, name: str, values: Any, shape: Sequence[int], datatype: str = "FP32") -> Answer:
        """Request an inference with one input as JSON."""
        tensor = {"name": name, "datatype": datatype, "shape": list(shape), "data": values}
        return self.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})


@contextmanager
def serving(
    models: Sequence[ModelOptions], options: AppOptions | None = None, http_options: HttpOptions | None = None
) -> Iterator[Running]:
    """Run a server on a free port of this machine, in a thread with its own event loop."""
    sock = listen("127.0.0.1", 0)
    ready = threading.Event()
    made: dict[str, Any] = {}

    async def run() -> None:
        app = create_app(models, options)
        server = Server(app, http_options or HttpOptions(), ready.set)
        made.update(app=app, server=server, loop=asyncio.get_running_loop())
        await app.start()
        await server.serve(sock)
        await app.close()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            made["error"] = error
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    if "error" in made:
        thread.join()
        raise made["error"]
    try:
        yield Running(sock.getsockname()[1], made["app"], made["server"])
    finally:
        made["loop"].call_soon_threadsafe(made["server"].stop)
        thread.join()
        sock.close()


def dense_file(folder: Path, name: str = "dense") -> Path:
    """y = x @ w + b for x: float32[n, 16], as a file."""
    from compiler.artifact import write_artifact
    from tests.compiler.runtime.building import dense_artifact

    path = folder / f"{name}.twm"
    write_artifact(dense_artifact(), path)
    return path
