"""python -m benchmarks.serving_overload [FOLDER] [--seconds S] [--times N] [--json FILE]: too many requests over HTTP.

MiniLM is served by `tensorwright serve`; its capacity is measured with 8 connections. Then a multiple of that rate of
requests arrives at random times, regardless of answers, each with a latency limit of 100 ms. The report contains the
accepted requests and those in time as seen by the client, the time of refusals, and the server's memory. Needs wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter, deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks._serving_models import build, example
from benchmarks._wrk import load
from benchmarks.serving import SLA_MS, embedded

_CONNECTIONS = 900  # a server accepts 1,000


def main() -> None:
    """Run the overload and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/serving-models"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    build(options.folder)
    with TemporaryDirectory() as made, embedded(options.folder) as (port, process):
        capacity = load(port, "minilm", 8, 5, Path(made)).per_second
        start_mb = _memory_mb(process)
        client = _Client(port)
        asyncio.run(client.run(options.times * capacity, options.seconds))
        results = {
            "capacity": capacity,
            "seconds": options.seconds,
            **client.found(),
            "memory_mb": [start_mb, _memory_mb(process)],
        }
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _memory_mb(supervisor: int) -> float:
    """Return the resident memory of a server's workers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    lines = [line for each in children for line in Path(f"/proc/{each}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


class _Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._transport: Any = None
        self._begun = 0.0
        self._content = b""
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, content: bytes, begun: float) -> None:
        self._begun, self._content, self._busy = begun, b"", True
        self._transport.write(content)

    def data_received(self, data: bytes) -> None:
        self._content += data
        head, found, body = self._content.partition(b"\r\n\r\n")
        if found and len(body) == int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self._busy = False
            self._client.answered(self, int(head[9:12]), time.monotonic() - self._begun)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._client.answered(self, 0, time.monotonic() - self._begun)


class _Client:
    """Sends requests at random times, and records the milliseconds of answers by status; 0: connection aborted."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[_Connection] = deque()
        self._asked = self._answered = 0
        self._milliseconds: dict[int, list[float]] = {}
        self._without_connection = 0

    async def run(self, rate: float, seconds: float) -> None:
        """Send `rate` requests per second."""
        loop = asyncio.get_running_loop()
        for _ in range(_CONNECTIONS):
            _, protocol = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
            self._idle.append(protocol)
        gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)).tolist()
        due, content = time.monotonic(), _content()
        for gap in gaps:
            due += gap
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            if self._idle:
                self._asked += 1
                self._idle.popleft().send(content, due)
            else:
                self._without_connection += 1
        while self._answered < self._asked:
            await asyncio.sleep(0.01)

    def answered(self, connection: _Connection, status: int, seconds: float) -> None:
        """Record the answer to a request."""
        self._answered += 1
        self._milliseconds.setdefault(status, []).append(1000 * seconds)
        if status:
            self._idle.append(connection)

    def found(self) -> dict[str, Any]:
        """Return fractions and percentiles."""
        accepted = self._milliseconds.get(200, [])
        refused = [each for status in (429, 503) for each in self._milliseconds.get(status, [])]
        return {
            "requests": self._asked,
            "not_sent": self._without_connection,
            "statuses": dict(Counter({status: len(each) for status, each in sorted(self._milliseconds.items())})),
            "accepted": len(accepted) / self._asked,
            "in_time": float(np.mean(np.array(accepted) <= SLA_MS)),
            "accepted_p50_p99": np.percentile(accepted, [50, 99]).tolist(),
            "refused_within_10ms": float(np.mean(np.array(refused) <= 10)) if refused else 1.0,
            "refused_p50_p99": np.percentile(refused, [50, 99]).tolist() if refused else [],
        }


def _content() -> bytes:
    (ids,) = example("minilm").values()
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": list(ids.shape), "data": ids.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = (
        "POST /v2/models/minilm/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nTensorwright-Latency-Ms: %d"
    )
    return (head % (len(body), SLA_MS)).encode() + b"\r\n\r\n" + body


if __name__ == "__main__":
    main()
