"""Errors as HTTP responses."""

from __future__ import annotations

import logging
import math

from compiler.errors import (
    InputError,
    ModelNotFoundError,
    OptionError,
    OverloadedError,
    QueueFullError,
    ServiceUnavailableError,
    TensorwrightError,
    UserError,
)
from compiler.serving.app.http import Header, HttpError, Reply, json_reply
from compiler.serving.limits import LimitError

_MOST = 1000  # characters of a message, which may repeat what the client sent
_log = logging.getLogger(__name__)
_STATUSES: tuple[tuple[type[TensorwrightError], int], ...] = (
    (InputError, 400),
    (OptionError, 400),
    (ModelNotFoundError, 404),
    (QueueFullError, 429),
    (ServiceUnavailableError, 503),
    (UserError, 400),
)


def failure(error: BaseException, path: str) -> Reply:
    """The answer for an error, as the protocol of the path writes errors.

    Server-side errors are logged, and reported without details.
    """
    status, headers = _status(error)
    if status < 500 or isinstance(error, UserError):
        assert isinstance(error, TensorwrightError)
        message = error.message if error.hint is None else f"{error.message[:_MOST]} ({error.hint})"
        message = message[: 2 * _MOST]
    else:
        _log.error("a request to %s failed", path, exc_info=error)
        message = "the server failed on this request; its log says why"
    if not path.startswith("/v1/"):
        return json_reply({"error": message}, status, headers)
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, headers)


def _status(error: BaseException) -> tuple[int, tuple[Header, ...]]:
    if isinstance(error, HttpError):
        return error.status, error.headers
    if isinstance(error, LimitError):
        return error.status, ()
    if isinstance(error, OverloadedError):
        seconds = str(max(1, math.ceil(error.retry_after))).encode()
        return 503 if error.late else 429, ((b"retry-after", seconds),)
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status, ()
    return 500, ()
