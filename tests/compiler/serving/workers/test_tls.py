"""The whole command over TLS, with client certificates, API keys and an OpenTelemetry collector."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import OptionError
from compiler.serving.workers.http_server import HttpOptions, Server
from tests.compiler.serving.certificates import Authority, Pair
from tests.compiler.serving.server import dense_file
from tests.compiler.serving.workers.echo import Echo

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}).encode()
KEY = "a-key-of-many-characters"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector of OTLP over HTTP: its URL and the received spans."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = service.ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(service.ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


def _context(authority: Authority, client: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


def _infer(port: int, context: ssl.SSLContext, key: str = KEY) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=120, context=context)
    try:
        connection.request("POST", "/v2/models/dense/infer", BODY, {"Authorization": f"Bearer {key}"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("workers", ["1", "2"])  # which accept connections, or are given them
def test_only_clients_with_a_certificate_and_a_key_are_answered(tmp_path: Path, workers: str) -> None:
    authority, stranger = Authority(tmp_path, "authority"), Authority(tmp_path, "stranger")
    own = authority.signed("server", password=b"open sesame")
    client, other = authority.signed("client"), stranger.signed("other")
    password, keys = tmp_path / "password", tmp_path / "keys"
    password.write_text("open sesame\n")
    keys.write_text(KEY)
    command = [sys.executable, "-m", "compiler.cli", "serve", str(dense_file(tmp_path)), "--port", "0"]
    command += ["--tls-certificate", str(own.certificate), "--tls-key", str(own.key)]
    command += ["--tls-key-password", str(password), "--tls-client-ca", str(authority.certificate)]
    with collector() as (url, spans):
        command += ["--api-keys", str(keys), "--otlp", url, "--workers", workers]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                assert line.startswith("serving on https://127.0.0.1:")
                port = int(line.rsplit(":", 1)[1])
                trusted = _context(authority, client)
                assert [_infer(port, trusted) for _ in range(2)] == [200, 200]
                assert _infer(port, trusted, key="another-key-of-many-characters") == 401
                for refused in (_context(authority), _context(authority, other)):
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        _infer(port, refused)
                with pytest.raises(ssl.SSLCertVerificationError):
                    _infer(port, _context(stranger, client))
                with socket.create_connection(("127.0.0.1", port), timeout=120) as plain:
                    plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    assert b"HTTP/1.1" not in plain.recv(100)
                assert _infer(port, trusted) == 200
            finally:
                process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
    # Spans that wait are sent before the workers end.
    assert [each.name for each in spans].count("inference") == 3
    attributes = {each.key: each.value.string_value for each in spans[0].attributes}
    assert spans[0].name != "inference" or attributes["tensorwright.model"] == "dense"


def test_certificates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    own, locked = authority.signed("server"), authority.signed("locked", password=b"open sesame")
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    for certificate, key, client_ca in (
        (broken, own.key, None), (own.certificate, locked.key, None), (locked.certificate, own.key, None),
        (own.certificate, own.key, broken), (tmp_path / "missing.pem", own.key, None),
    ):  # fmt: skip
        with pytest.raises(OptionError, match="cannot be served"):
            Server(Echo(), HttpOptions(certificate=certificate, private_key=key, client_ca=client_ca))
