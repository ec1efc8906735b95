from __future__ import annotations

import gzip
import logging
import re
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from compiler.errors import OptionError
from compiler.serving.app.api_keys import key_digest, read_api_keys
from compiler.serving.app.authentication import ApiKeys
from compiler.serving.app.create import AppOptions
from compiler.serving.configuration import ModelOptions, model_options
from compiler.serving.limits import Limits
from compiler.serving.workers.http_server import HttpOptions
from tests.compiler.profiling.conftest import chromium
from tests.compiler.serving.server import Running, dense_file, serving

KEY = "a-key-of-many-characters"
ROW = [0.5] * 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    return model_options({"path": str(dense_file(tmp_path_factory.mktemp("models"))), "exact_cache": {}}, "a model")


@pytest.fixture(scope="module")
def server(model: ModelOptions) -> Iterator[Running]:
    with serving([model], AppOptions(price=0.05)) as running:
        yield running


def test_a_scrape_of_the_metrics(server: Running) -> None:
    for _ in range(3):
        assert server.infer("dense", "x", ROW, (1, 16)).status == 200
    assert server.infer("dense", "x", ROW, (1, 15)).status == 400
    families = {each.name: each for each in text_string_to_metric_families(server.ask("GET", "/metrics").body.decode())}

    def value(family: str, name: str, **labels: str) -> float:
        return sum(s.value for s in families[family].samples if s.name == name and labels.items() <= s.labels.items())

    requests = "tensorwright_requests"
    assert value(requests, f"{requests}_total", model="dense", route="infer", status="200") == 3
    assert value(requests, f"{requests}_total", model="dense", route="infer", status="400") == 1
    assert value("tensorwright_request_seconds", "tensorwright_request_seconds_count", model="dense") == 4
    assert value("tensorwright_batch_rows", "tensorwright_batch_rows_count", model="dense") == 1
    assert value("tensorwright_cache_rows", "tensorwright_cache_rows_total", model="dense", result="hit") == 2
    assert value("tensorwright_rows", "tensorwright_rows_total", model="dense") == 3
    assert value("tensorwright_cost_per_1000_rows", "tensorwright_cost_per_1000_rows", model="dense") > 0


def test_the_status_page(server: Running) -> None:
    answer = server.ask("GET", "/")
    assert answer.status == 200
    assert "text/html" in answer.headers["content-type"]
    assert b"Tensorwright server" in answer.body


@pytest.mark.skipif(chromium() is None, reason="no Chromium to open the status page in")
def test_the_status_page_in_a_browser(model: ModelOptions, tmp_path: Path) -> None:
    with serving([model], AppOptions(keys=ApiKeys([key_digest(KEY)]))) as server:
        for row in ([0.5] * 16, [0.5] * 16, [0.5] * 15):  # an answer, one of the cache, an error
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": row}
            server.ask("POST", "/v2/models/dense/infer", {"inputs": [tensor]}, {"X-API-Key": KEY})
        page = _opened(f"http://any:{KEY}@127.0.0.1:{server.port}/status", tmp_path)
        rows = [re.findall("<td>([^<]*)</td>", each) for each in re.findall("<tr>(?:(?!</tr>).)*</tr>", page)]
        (shown,) = [each for each in rows if each and each[0] == "dense"]
        assert shown[1:5] == ["READY", "1", "3", "1"]
        assert shown[6].endswith(" ms")
        assert shown[-1] == "33.3 %"  # the error was looked up too


def _opened(url: str, folder: Path) -> str:
    """A page's contents, after its scripts ran."""
    command = [str(chromium()), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


def test_a_cached_answer_says_so(server: Running) -> None:
    row = [0.25] * 16
    first, second = (server.infer("dense", "x", row, (1, 16)).json for _ in range(2))
    assert "cached" not in first["parameters"]
    assert second["parameters"]["cached"] == "exact"
    assert first["outputs"] == second["outputs"]


def test_a_stranger_without_a_key_gets_nothing(model: ModelOptions) -> None:
    options = AppOptions(keys=ApiKeys([key_digest(KEY)]), local_only=False)
    with serving([model], options) as server:
        paths = ["/", "/metrics", "/v2", "/v2/health/live", "/v2/models/dense", "/v1/models", "/nothing"]
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"X-API-Key": KEY[:-1]}):
            for path in paths:
                answer = server.ask("GET", path, headers=headers)
                assert answer.status == 401
                assert b"dense" not in answer.body
            assert server.ask("POST", "/v2/repository/models/dense/unload", headers=headers).status == 401
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}):
            assert server.ask("GET", "/v2/models/dense", headers=headers).status == 200
        basic = {"Authorization": f"Basic {b64encode(f'any:{KEY}'.encode()).decode()}"}
        for origin, status in ((server.url, 200), ("http://other.example", 403), ("null", 403)):
            answer = server.ask("POST", "/v2/repository/index", headers={**basic, "Origin": origin})
            assert answer.status == status
        assert server.ask("GET", "/v2", headers={"Authorization": "Basic not-base64"}).status == 401


def test_api_keys_are_read_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# clients\n{KEY}  # first\n\n")
    monkeypatch.setenv("TENSORWRIGHT_API_KEYS", "another-key-of-many-characters")
    assert read_api_keys(path) == (key_digest("another-key-of-many-characters"), key_digest(KEY))
    path.write_text("short\n")
    with pytest.raises(OptionError, match="16 characters"):
        read_api_keys(path)
    path.write_text("# none\n")
    with pytest.raises(OptionError, match="no API key"):
        read_api_keys(path)


def test_large_requests_are_refused(model: ModelOptions) -> None:
    with serving([model], AppOptions(limits=Limits(max_request_bytes=1000))) as server:
        path = "/v2/models/dense/infer"
        assert server.ask("POST", path, b"x" * 1001).status == 413
        packed = gzip.compress(b" " * 100_000)
        assert len(packed) < 1000
        assert server.ask("POST", path, packed, {"Content-Encoding": "gzip"}).status == 413
        with socket.create_connection(("127.0.0.1", server.port)) as client:  # of no announced length
            client.sendall(
                b"POST /v2/models/dense/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(3):
                client.sendall(b"190\r\n" + b"y" * 400 + b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_slow_clients_do_not_stay(model: ModelOptions) -> None:
    limits = Limits(body_seconds=1.0)
    with serving([model], AppOptions(limits=limits), HttpOptions(header_seconds=1.0)) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as silent, socket.create_connection(address) as half:
            half.sendall(b"GET /v2 HTTP/1.1\r\nHost: local")
            with socket.create_connection(address) as slow:
                slow.sendall(b"POST /v2/models/dense/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
                assert slow.recv(100).startswith(b"HTTP/1.1 408")
            for each in (silent, half):
                assert _is_closed(each)
        assert server.infer("dense", "x", ROW, (1, 16)).status == 200


def _is_closed(client: socket.socket) -> bool:
    """Wait until the server closes a connection."""
    client.settimeout(60)
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_endless_headers_are_cut_off(server: Running) -> None:
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client, suppress(OSError):  # reset
        client.sendall(b"GET /v2 HTTP/1.1\r\n")
        for number in range(200):
            client.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))
        answer = client.recv(1 << 16)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


def test_many_connections_one_after_another_leave_nothing(server: Running) -> None:
    import os

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        server.infer("dense", "x", ROW, (1, 16))
    before = descriptors()
    for _ in range(200):
        server.infer("dense", "x", ROW, (1, 16))
    while descriptors() > before or server.server.connections:  # the server closes its ends a little later
        time.sleep(0.01)


def test_the_access_log_has_a_line_for_each_request(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tensorwright.access"):
        server.ask("GET", "/v2/%0A%22evil")
        server.infer("dense", "x", ROW, (1, 16))
        while len(caplog.messages) < 2:
            time.sleep(0.01)
    assert '"GET /v2/\\\\n' in caplog.messages[0].replace("\\n", "\\\\n")
    assert "\n" not in caplog.messages[0]
    assert 'POST /v2/models/dense/infer" 200' in caplog.messages[1]
