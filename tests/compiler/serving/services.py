"""Small services for the tests of policies: numpy instead of a compiled model, and a log of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compiler.artifact import TensorDescription
from compiler.serving.request import Request, Response, ServiceLevel, Timing

Array = np.ndarray[Any, Any]


class FunctionService:
    """Answers {"y": function(x)} for {"x": float32 (batch, 2)}; `gate` holds answers back until it is set."""

    def __init__(
        self,
        function: Callable[[Array], Array] = lambda x: x * 2,
        *,
        name: str = "model",
        variant: str = "default",
        identity: str = "",
        notes: Mapping[str, str | float] | None = None,
    ) -> None:
        self.function, self.name, self.version, self.variant, self.identity = function, name, "1", variant, identity
        self.notes = dict(notes or {})
        self.asked: list[Request] = []
        self.failures: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.started = self.closed = 0

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        return (TensorDescription(name="x", shape=("batch", 2), dtype="float32"),)

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        return (TensorDescription(name="y", shape=("batch", 2), dtype="float32"),)

    @property
    def rows(self) -> int:
        """Number of rows computed."""
        return sum(len(each.inputs["x"]) for each in self.asked)

    async def start(self) -> None:
        self.started += 1

    async def infer(self, request: Request) -> Response:
        self.asked.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        x = request.inputs["x"]
        served = f"{self.name}/{self.version}/{self.variant}"
        return Response({"y": self.function(x)}, served, Timing(0, 0.001, len(x)), notes=dict(self.notes))

    async def close(self) -> None:
        self.closed += 1


def request(*rows: float, **fields: Any) -> Request:
    """A request with a row (value, value + 0.5) for each value; `min_accuracy` and others of the level as well."""
    level = {name: fields.pop(name) for name in ("latency_ms", "min_accuracy", "max_cost") if name in fields}
    x = np.array([(value, value + 0.5) for value in rows], np.float32).reshape(-1, 2)
    return Request({"x": x}, level=ServiceLevel(**level), **fields)
