"""The application called as by an ASGI server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.serving.app.application import Application
from compiler.serving.app.create import AppOptions, create_app
from compiler.serving.configuration import model_options
from compiler.serving.limits import Limits
from tests.compiler.serving.server import dense_file

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}).encode()


async def _asked(app: Application, messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages that the application sends after receiving only the given ones."""
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return messages.pop(0) if messages else await asyncio.get_running_loop().create_future()

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v2/models/dense/infer", "headers": headers, "client": None}
    await app(scope, receive, send)
    return sent


def test_requests_of_an_asgi_server(tmp_path: Path) -> None:
    limits = Limits(max_request_bytes=2 * len(BODY), body_seconds=0.01)
    app = create_app([model_options({"path": str(dense_file(tmp_path))}, "a model")], AppOptions(limits=limits))

    def part(body: bytes, more: bool) -> Mapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": more}

    async def run() -> None:
        lifespan: list[Mapping[str, Any]] = []
        ends: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

        async def note(message: Mapping[str, Any]) -> None:
            lifespan.append(message)

        running = asyncio.ensure_future(app({"type": "lifespan"}, ends.get, note))
        ends.put_nowait({"type": "lifespan.startup"})
        while not lifespan:
            await asyncio.sleep(0.01)
        start, body = await _asked(app, [part(BODY[:20], True), part(BODY[20:], False)])
        assert start["status"] == 200
        assert json.loads(body["body"])["outputs"][0]["shape"] == [1, 8]
        assert (await _asked(app, [part(BODY, True), part(BODY, True), part(BODY, True)]))[0]["status"] == 413
        assert (await _asked(app, [part(BODY[:20], True)]))[0]["status"] == 408
        assert await _asked(app, [part(BODY[:20], True), {"type": "http.disconnect"}]) == []
        ends.put_nowait({"type": "lifespan.shutdown"})
        await running
        assert [each["type"] for each in lifespan] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    asyncio.run(run())
