"""`WorkerOptions`: options that a supervisor sends to its workers; plain data, so that it loads no runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of a worker.

    Attributes:
        models: mappings for `configuration.model_options`.
        configuration: path of a YAML file with more models.
        workers: number of workers that share this machine's cores.
        key_digests: SHA-256 of the API keys of clients.
        local_only: see `AppOptions`.
        http, limits: fields of `HttpOptions` and `Limits`.
        access_log: a path, or "-" for standard output; "": none.
        price: price of a core per hour.
        traces: clients may ask for a profile of the kernels.
        otlp: endpoint for spans; "" for none.
    """

    models: tuple[Mapping[str, Any], ...] = ()
    configuration: str | None = None
    workers: int = 1
    key_digests: tuple[bytes, ...] = ()
    local_only: bool = True
    http: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    access_log: str = ""
    price: float = 0.0
    traces: bool = False
    otlp: str = ""

    @property
    def configuration_path(self) -> Path | None:
        """`configuration` as a path."""
        return None if self.configuration is None else Path(self.configuration)
