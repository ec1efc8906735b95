"""The Open Inference Protocol, version 2, over HTTP, with Triton's extensions for binary tensors and repositories."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from compiler.artifact import tool_versions
from compiler.errors import InputError
from compiler.serving.app.http import INLINE_BYTES, Call, Reply, check_method, json_reply, orjson, positive
from compiler.serving.app.tensors import Inference, metadata, read_inference, write_outputs
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Control, Repository
from compiler.serving.request import Response
from compiler.serving.service import Service
from compiler.serving.tracing import Tracer
from compiler.support.shown import shown

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready|config))?")
_REPOSITORY = re.compile(r"/v2/repository/(?:models/([^/]+)/(load|unload)|(index))")
_HEADER_LENGTH = b"inference-header-content-length"
_EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration")
_MICROSECONDS = 1e-6
_MAX_DIGITS = 18
_MAX_PATH = 1024
_NOTHING = memoryview(b"")


class OpenInference:
    """The protocol's routes."""

    def __init__(
        self,
        repository: Repository,
        control: Control,
        metrics: Metrics,
        *,
        traces: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        """Create the routes.

        Args:
            traces: clients may ask for a profile of the kernels.
            tracer: records each inference.
        """
        self._repository, self._control, self._metrics = repository, control, metrics
        self._traces, self._tracer = traces, tracer
        self._version = tool_versions().tensorwright
        self._plain: Mapping[str, Callable[[Call], Awaitable[Reply]]] = {
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
        }

    async def answer(self, call: Call) -> Reply | None:
        """Return the response; None if the path does not belong to the protocol."""
        path = call.path
        found = _of_model(path)
        if found is not None:
            name, version, action = found
            call.model = name if self._repository.has(name) else ""
            if action == "infer":
                check_method(call, "POST")
                call.route = "infer"
                return await self._infer(call, name, version)
            check_method(call, "GET")
            return self._about(name, version, action)
        plain = self._plain.get(path.rstrip("/"))
        if plain is not None:
            check_method(call, "GET")
            return await plain(call)
        managed = _REPOSITORY.fullmatch(path)
        if managed is None:
            return None
        check_method(call, "POST")
        return await self._manage(*managed.groups())

    async def _server(self, call: Call) -> Reply:
        return json_reply({"name": "tensorwright", "version": self._version, "extensions": _EXTENSIONS})

    async def _live(self, call: Call) -> Reply:
        call.route = "health"
        return json_reply({"live": True})

    async def _ready(self, call: Call) -> Reply:
        call.route = "health"
        ready = self._repository.ready and not self._control.draining
        return json_reply({"ready": ready}, 200 if ready else 503)

    def _about(self, name: str, version: str | None, action: str | None) -> Reply:
        service = self._repository.service(name, version)
        if action == "ready":
            return json_reply({"name": name, "ready": True})
        tensors = {
            "inputs": [metadata(each) for each in service.inputs],
            "outputs": [metadata(each) for each in service.outputs],
        }
        if action is None:
            return json_reply({"name": name, "versions": [service.version], "platform": "tensorwright", **tensors})
        return json_reply(_config(name, tensors))

    async def _manage(self, name: str | None, action: str | None, index: str | None) -> Reply:
        if index is not None:
            return json_reply([asdict(each) for each in self._repository.index()])
        assert name is not None
        self._repository.options(name)
        await (self._control.load(name) if action == "load" else self._control.unload(name))
        return json_reply({})

    async def _infer(self, call: Call, name: str, version: str | None) -> Reply:
        self._repository.service(name, version)  # nothing else is read
        content, binary = _split(call)
        if len(content) <= INLINE_BYTES:
            read = read_inference(content, binary, call.limits)
        else:
            limits = call.limits
            job = ("inference", None, bytes(content), bytes(binary), limits.tensors)
            read = Inference(*await call.required_sandbox.run(*job))
        parameters, inputs = read.parameters, read.inputs
        with self._repository.lease(name, version) as service:
            latency = _latency(parameters, self._repository.options(name).latency_ms)
            traced = self._wants_trace(parameters)
            request = call.request(
                inputs, latency, parameters, outputs=read.names, identifier=read.identifier, traced=traced
            )
            response = await service.infer(request)
            if self._tracer is not None:
                self._tracer.record(call.headers, name, call.arrival, response)
            call.observe([response], self._metrics, rows_of(service, inputs))
            by_default = parameters.get("binary_data_output") is True
            return _reply(service, response, read.identifier, read.as_bytes, by_default)

    def _wants_trace(self, parameters: Mapping[str, object]) -> bool:
        requested = parameters.get("trace") is True
        if requested and not self._traces:
            raise InputError("this server does not allow profiling of kernels", "serve with --traces")
        return requested


@lru_cache(maxsize=256)
def _of_model(path: str) -> tuple[str, str | None, str | None] | None:
    """Return the name, version and action in a model's path."""
    found = _MODEL.fullmatch(path) if len(path) <= _MAX_PATH else None
    return None if found is None else (found[1], found[2], found[3])


def rows_of(service: Service, inputs: Mapping[str, Any]) -> int:
    """Return the number of rows of a request, for metrics: the first dimension of its first input if it is dynamic."""
    if not service.inputs:
        return 1
    first = service.inputs[0]
    return len(inputs[first.name]) if first.shape and isinstance(first.shape[0], str) else 1


def _latency(parameters: Mapping[str, object], default: float | None) -> float | None:
    """Return milliseconds: our parameter `latency_ms`, Triton's `timeout` in microseconds, or the model's default."""
    if "latency_ms" in parameters:
        return positive(parameters["latency_ms"], "latency_ms")
    if parameters.get("timeout"):
        return positive(parameters["timeout"], "timeout") * _MICROSECONDS * 1000
    return default


def _split(call: Call) -> tuple[bytes | bytearray | memoryview, memoryview]:
    """Split a request into its JSON and the bytes after it."""
    length = call.headers.get(_HEADER_LENGTH)
    if length is None:
        return call.body, _NOTHING
    if not length.isdigit() or len(length) > _MAX_DIGITS or int(length) > len(call.body):
        raise InputError(f"the header Inference-Header-Content-Length {shown(length.decode('latin-1'))} does not fit")
    view = memoryview(call.body)
    return view[: int(length)], view[int(length) :]


def _reply(
    service: Service, response: Response, identifier: str, as_bytes: Mapping[str, bool], by_default: bool
) -> Reply:
    outputs, chunks = write_outputs(response.outputs, as_bytes, by_default)
    content: dict[str, Any] = {
        "model_name": service.name,
        "model_version": service.version,
        "outputs": outputs,
        "parameters": {"served_by": response.served_by, **response.notes},
    }
    if identifier:
        content["id"] = identifier
    if response.cached is not None:
        content["parameters"]["cached"] = response.cached
    if response.events:
        content["parameters"]["trace"] = orjson.dumps(list(response.events)).decode()
    reply = json_reply(content)
    if not chunks:
        return reply
    headers = ((b"content-type", b"application/octet-stream"), (_HEADER_LENGTH, str(len(reply.body)).encode()))
    return Reply(b"".join((reply.body, *chunks)), headers=headers)


def _config(name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model configuration for Triton's clients; a first dimension of -1 counts rows."""
    listed = [tensor for kind in ("inputs", "outputs") for tensor in tensors[kind]]
    batched = all(tensor["shape"] and tensor["shape"][0] == -1 for tensor in listed)

    def described(tensor: Mapping[str, Any]) -> dict[str, Any]:
        dims = tensor["shape"][1:] if batched else tensor["shape"]
        return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": dims}

    return {
        "name": name,
        "platform": "tensorwright",
        "backend": "tensorwright",
        "max_batch_size": 32 if batched else 0,
        "input": [described(tensor) for tensor in tensors["inputs"]],
        "output": [described(tensor) for tensor in tensors["outputs"]],
    }
