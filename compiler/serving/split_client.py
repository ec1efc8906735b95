"""`SplitClient`: runs the client's half of a split model locally, and the rest on a server."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from urllib.parse import quote, urlsplit

import numpy as np

from compiler.errors import InputError, OptionError, OverloadedError, ServiceUnavailableError
from compiler.runtime import Module, load
from compiler.serving.request import Array

_DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_DTYPES = {datatype: np.dtype(dtype) for dtype, datatype in _DATATYPES.items()}
_HEADER = "Inference-Header-Content-Length"
_TOO_MANY = 429


class SplitClient:
    """The client's half of a model split by `tensorwright split`; any server of the Open Inference Protocol can serve
    the other half (`tensorwright serve`, Triton). Tensors are sent as bytes, in the wire type.

    Safe to use from several threads, each with its own connection.
    """

    def __init__(
        self,
        client: str | os.PathLike[str] | Module,
        url: str,
        model: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Load the client's half.

        Args:
            url: URL of the server: "http://host:8000" or "https://...".
            model: name of the served half.
            headers: headers of each request, such as an API key: {"Authorization": "Bearer ..."}.
            timeout: seconds to wait for the server.

        Raises:
            OptionError: the URL is not a server URL.
            ArtifactError, ...: as `load`.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(f"{url!r} is not a server URL", "give one such as http://host:8000")
        self.module = client if isinstance(client, Module) else load(client)
        self._parts, self._timeout, self._headers = parts, timeout, dict(headers or {})
        self._path = f"{parts.path.rstrip('/')}/v2/models/{quote(model, safe='')}/infer"
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """Run both halves and return the model's outputs by name.

        Raises:
            InputError: the inputs do not fit, or the server refuses the request.
            OverloadedError, ServiceUnavailableError: the server cannot answer now, or cannot be reached.
        """
        names = {each.name for each in self.module.inputs}
        sent = self.module.run({name: inputs[name] for name in inputs if name in names})
        status, header, body = self._ask(sent)
        if status != http.client.OK:
            raise _error(status, body)
        return _outputs(header, body)

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()

    def __enter__(self) -> SplitClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, sent: Mapping[str, Array]) -> tuple[int, str | None, bytes]:
        arrays = {name: np.ascontiguousarray(array) for name, array in sent.items()}
        tensors = [
            {
                "name": name,
                "shape": list(sent[name].shape),
                "datatype": _DATATYPES[str(array.dtype)],
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in arrays.items()
        ]
        text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        body = b"".join([text, *(array.tobytes() for array in arrays.values())])
        headers = {**self._headers, _HEADER: str(len(text)), "Content-Type": "application/octet-stream"}
        connection, fresh = self._connection()
        # The server may have closed an idle connection: then try once more on a new one.
        for last in (True,) if fresh else (False, True):
            try:
                return self._exchange(connection, body, headers)
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                if last:
                    message = f"the server at {self._parts.netloc} does not answer: {error or type(error).__name__}"
                    raise ServiceUnavailableError(message, "check that it is running, and try again") from error
        raise AssertionError("the last attempt returns or raises")

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, str | None, bytes]:
        connection.request("POST", self._path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.getheader(_HEADER), response.read()

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """Return this thread's connection, and True if it is new."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection, connection.sock is None
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=self._timeout)
        self._local.connection = connection
        with self._lock:
            self._connections.append(connection)
        return connection, True


def _outputs(header: str | None, body: bytes) -> dict[str, Array]:
    size = int(header) if header is not None else len(body)
    try:
        outputs, position, arrays = json.loads(body[:size])["outputs"], size, {}
        for tensor in outputs:
            dtype, shape = _DTYPES[tensor["datatype"]], tensor["shape"]
            count = int(np.prod(shape, dtype=np.int64))
            nbytes = tensor.get("parameters", {}).get("binary_data_size")
            if nbytes is None:
                arrays[tensor["name"]] = np.array(tensor["data"], dtype).reshape(shape)
            else:
                arrays[tensor["name"]] = np.frombuffer(body, dtype, count, position).reshape(shape).copy()
                position += nbytes
        return arrays
    except (KeyError, ValueError, TypeError) as error:
        raise ServiceUnavailableError(
            f"the server's answer is not valid in the Open Inference Protocol: {error}"
        ) from error


def _error(status: int, body: bytes) -> Exception:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    text = f"the server refuses the request with status {status}: {message}"
    if status == _TOO_MANY:
        return OverloadedError(text)
    return ServiceUnavailableError(text) if status >= http.client.INTERNAL_SERVER_ERROR else InputError(text)
