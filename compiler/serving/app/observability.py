"""`/metrics`, and the status page."""

from __future__ import annotations

from pathlib import Path

from compiler.serving.app.http import Call, Reply, check_method
from compiler.serving.metrics import CONTENT_TYPE, Metrics

_PAGE = Path(__file__).with_name("status.html")


class Observability:
    """Endpoints for operators: metrics and the status page."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        if call.path == "/metrics":
            check_method(call, "GET")
            call.route = "metrics"
            return Reply(self._metrics.text(), headers=((b"content-type", CONTENT_TYPE.encode()),))
        if call.path in ("/", "/status"):
            check_method(call, "GET")
            call.route = "status"
            headers = (
                (b"content-type", b"text/html; charset=utf-8"),
                (
                    b"content-security-policy",
                    b"default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
                ),
                (b"x-content-type-options", b"nosniff"),
            )
            return Reply(_PAGE.read_bytes(), headers=headers)
        return None
