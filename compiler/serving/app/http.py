"""HTTP requests and answers as the routes see them, and the delay of answers by this process."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

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
from compiler.serving.limits import DEFAULT_LIMITS, HeldBytes, LimitError, Limits
from compiler.serving.metrics import Metrics
from compiler.serving.request import ANY_LEVEL, Array, Request, Response, ServiceLevel
from compiler.serving.sandbox.client import Sandbox
from compiler.support.optional import optional_module
from compiler.support.shown import shown

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Number = TypeVar("Number", int, float)

INLINE_BYTES = 256 << 10
"""Bytes of JSON that are parsed in the event loop at once: some 10 ms at most."""
_NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})
JSON: Header = (b"content-type", b"application/json")
CLOSE: Header = (b"connection", b"close")
LATENCY_HEADER = b"tensorwright-latency-ms"
"""Request header: milliseconds from arrival after which the answer is useless."""

orjson: Any = optional_module("orjson", "serve", "reads and writes JSON")


class HttpError(UserError):
    """Refusal of a request with a specific status."""

    def __init__(self, status: int, message: str, hint: str | None = None, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(message, hint)
        self.status = status
        self.headers = headers


@dataclass(eq=False)
class Call:
    """An HTTP request whose body has been received.

    Attributes:
        headers: by lower-case name; the last of several with the same name.
        arrival: seconds of `time.monotonic()`.
        model, route: its model and route once known, for metrics and logs.
        chunked: its client accepts chunked answers (HTTP/1.1).
        lag: delays of the answering process.
        limits: limits of the server.
        sandbox: sandbox of the answering process; None before it answers.
        parsing: lock held while a large body is parsed, shared by all requests.
        holding: counts the bytes held by requests; None: no counting.
        held: counted bytes of its body and of data decoded from it.
        computed: seconds of `time.monotonic()` when its answer was computed; 0 if unknown.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes | bytearray
    arrival: float
    model: str = ""
    route: str = "other"
    chunked: bool = True
    lag: Lag | None = None
    limits: Limits = DEFAULT_LIMITS
    sandbox: Sandbox | None = None
    parsing: asyncio.Lock | None = None
    holding: HeldBytes | None = None
    held: int = 0
    computed: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def hold(self, count: int) -> None:
        """Count bytes that it holds until `release`. Raises LimitError if all requests together hold too many."""
        if self.holding is not None:
            self.holding.add(count)
            self.held += count

    def release(self) -> None:
        """Release the counted bytes."""
        if self.holding is not None:
            self.holding.remove(self.held)
            self.held = 0

    async def json(self) -> Any:
        """Parse the body as JSON. Raises InputError, and LimitError if it has too many values."""
        if len(self.body) <= INLINE_BYTES or self.parsing is None:
            return self._parsed()
        async with self.parsing:
            await asyncio.sleep(0)  # others are answered between two large bodies
            return self._parsed()

    def _parsed(self) -> Any:
        limits, body = self.limits, self.body
        if len(body) > limits.json_values:  # each value takes at least a byte
            limits.check("json_values", sum(map(body.count, (b",", b"[", b"{"))))
        return parse_json(body)

    @property
    def required_sandbox(self) -> Sandbox:
        """Return the sandbox, which is set when the request is answered."""
        assert self.sandbox is not None
        return self.sandbox

    def deadline(self, latency_ms: float | None) -> float | None:
        """Return the deadline of the answer: from the request's header, or else from `latency_ms`."""
        given = self.headers.get(LATENCY_HEADER)
        if given is not None:
            latency_ms = positive(given.decode("latin-1"), LATENCY_HEADER.decode())
        return None if latency_ms is None else self.arrival + latency_ms / 1000

    def margin(self, deadline: float | None) -> float:
        """Return how many seconds before a deadline the answer must be computed, by recent delays of other answers."""
        return 0.0 if deadline is None or self.lag is None else self.lag.margin(deadline - self.arrival, self.arrival)

    def request(
        self,
        inputs: Mapping[str, Array],
        latency_ms: float | None,
        parameters: Mapping[str, Any] = _NO_PARAMETERS,
        *,
        outputs: tuple[str, ...] | None = None,
        identifier: str = "",
        traced: bool = False,
    ) -> Request:
        """Create the request to a service. Raises InputError if a header or a parameter is out of range.

        Args:
            latency_ms: time limit of the answer if the request's header has none.
            parameters: parameters of the service level.
        """
        deadline, level = self.deadline(latency_ms), self.level(latency_ms, parameters)
        return Request(inputs, outputs, self.arrival, deadline, level, identifier, traced, self.margin(deadline))

    def observe(self, responses: Sequence[Response], metrics: Metrics, rows: int = 1) -> None:
        """Record the time when its answer was computed, and count the underlying responses of this many rows each."""
        self.computed = max(each.timing.ended for each in responses)
        for each in responses:
            metrics.observe_response(each, self.model, rows)

    def level(self, latency_ms: float | None, parameters: Mapping[str, Any]) -> ServiceLevel:
        """Return the requested service level: `latency_ms`, `min_accuracy` and `max_cost` in the parameters."""
        if not parameters and latency_ms is None:
            return ANY_LEVEL
        cost = parameters.get("max_cost")
        accuracy = parameters.get("min_accuracy", 0.0)
        if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
            raise InputError(f"min_accuracy must be a number from 0 to 1, not {shown(accuracy)}")
        return ServiceLevel(latency_ms, float(accuracy), None if cost is None else positive(cost, "max_cost"))


@dataclass(eq=False)
class Reply:
    """An answer with a complete body."""

    body: bytes = b""
    status: int = 200
    headers: tuple[Header, ...] = (JSON,)


@dataclass(eq=False)
class StreamReply:
    """An answer with a streamed body; the iterator is closed if the client disconnects."""

    pieces: AsyncIterator[bytes]
    headers: tuple[Header, ...] = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
    )
    status: int = 200


class Handler(Protocol):
    """Handler of requests, independent of the server: `admit`, then the body, then `answer`, and `finished`."""

    limits: Limits

    def admit(self, call: Call) -> None:
        """Check a request's headers before its body is read. Raises HttpError."""

    async def answer(self, call: Call) -> Reply | StreamReply:
        """Answer a request whose body is complete; errors become answers too."""

    def refused(self, call: Call, error: Exception) -> Reply:
        """Answer a request whose body is not read; the connection is closed afterwards."""

    def finished(self, call: Call, status: int, client: str) -> None:
        """Count and log an answered request; status 499 if its client had disconnected."""


class LifespanHandler(Handler, Protocol):
    """A handler that the server starts and closes."""

    async def start(self) -> None:
        """Load the models. Raises the error if one cannot be served."""

    async def close(self) -> None:
        """Close everything that was started."""


def check_method(call: Call, method: str) -> None:
    """Raise HttpError unless a request has the right method for its path; HEAD is GET without a body."""
    if call.method != method and not (method == "GET" and call.method == "HEAD"):
        allowed = "GET, HEAD" if method == "GET" else method
        raise HttpError(405, f"{call.path} takes {allowed}, not {call.method}", headers=((b"allow", allowed.encode()),))


def json_bytes(content: Any) -> bytes:
    """Encode JSON; numpy arrays become lists, and NaN and infinities null."""
    written: bytes = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return written


def json_reply(content: Any, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
    """Create an answer in JSON, encoded by `json_bytes`."""
    return Reply(json_bytes(content), status, (JSON, *headers))


def parse_json(content: bytes | bytearray | memoryview) -> Any:
    """Parse JSON. Raises InputError if it is invalid."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is not valid JSON: {error}") from error


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return a JSON object. Raises InputError for anything else."""
    if not isinstance(value, dict):
        raise InputError(f"{what} must be an object, not {shown(value)}")
    return value


def flag(body: Mapping[str, object], name: str) -> bool:
    """Return a Boolean field; False if it is missing or null. Raises InputError."""
    value = body.get(name)
    if value not in (None, True, False):
        raise InputError(f"{name!r} must be true or false, not {shown(value)}")
    return bool(value)


def positive(value: Any, name: str) -> float:
    """Return a number above 0. Raises InputError."""
    try:
        number = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"{name} must be a number above 0, not {shown(value)}")
    return number


_PERIOD = 1.0  # seconds; the longest wait is forgotten after one to two of these
_MAX_WAIT_SHARE = (
    0.5  # of a request's time: some must remain for its run, or nothing would be accepted and learned from
)


class Lag:
    """The longest delay of an answer in the last second or two: for the event loop, and until it is written.

    A request has a similar, unmeasured delay before it is read; `margin` includes both.
    """

    def __init__(self) -> None:
        self._longest = self._before = self._until = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Record the delay of an answer after the end of its run; `now` is monotonic time."""
        self._forget(now)
        self._longest = max(self._longest, seconds)

    def margin(self, seconds: float, now: float) -> float:
        """Return the seconds of a request's time limit that its run must leave."""
        self._forget(now)
        return min(2 * max(self._longest, self._before), _MAX_WAIT_SHARE * seconds)

    def _forget(self, now: float) -> None:
        if now < self._until:
            return
        self._before = self._longest if now < self._until + _PERIOD else 0.0
        self._longest, self._until = 0.0, now + _PERIOD


_MAX_SHOWN = 1000  # characters of a message, which may contain client data
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
    """Return the answer for an error, in the error format of the path's protocol.

    Server-side errors are logged, and reported without details.
    """
    status, headers = _status(error)
    if status < 500 or isinstance(error, UserError):
        assert isinstance(error, TensorwrightError)
        message = error.message if error.hint is None else f"{error.message[:_MAX_SHOWN]} ({error.hint})"
        message = message[: 2 * _MAX_SHOWN]
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
