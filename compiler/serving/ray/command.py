"""The options of `tensorwright serve` for Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.errors import OptionError
from compiler.serving.app.authentication import ApiKeys
from compiler.serving.app.create import AppOptions
from compiler.serving.configuration import ModelOptions, check_models, model_options, read_configuration, server_limits
from compiler.serving.ray.options import RayOptions
from compiler.serving.ray.running import RayAddress, serve_on_ray
from compiler.serving.workers.options import WorkerOptions

# Of the server's options for TLS, what Ray's proxies call them.
_HTTP = {"certificate": "ssl_certfile", "private_key": "ssl_keyfile", "client_ca": "ssl_ca_certs"}


@dataclass(frozen=True)
class RayFlags:
    """Options of the command line about Ray, as of `RayOptions` and `RayAddress`."""

    cluster: str
    max_replicas: int | None
    cores: int
    multiplexed: int
    placement: bool


def serve_command(
    given: WorkerOptions, flags: RayFlags, host: str, port: int, drain_seconds: float, started: Callable[[str], None]
) -> None:
    """Serve on Ray until SIGTERM or SIGINT. Raises as `serve_on_ray`; OptionError for options that Ray cannot have."""
    if given.access_log:
        raise OptionError("--access-log is not available with Ray", "Ray's proxies log requests (serve/ in Ray's logs)")
    app = AppOptions(
        keys=ApiKeys(given.key_digests),
        limits=server_limits(given.configuration_path, given.limits),
        local_only=given.local_only,
        price=given.price,
        traces=given.traces,
    )
    how = RayOptions(
        min_replicas=given.workers,
        max_replicas=flags.max_replicas or given.workers,
        cores=flags.cores,
        multiplexed=flags.multiplexed,
        placement=flags.placement,
        drain_s=drain_seconds,
        otlp=given.otlp,
    )
    address = RayAddress(host=host, port=port, cluster=flags.cluster, http=_tls(given.http))
    serve_on_ray(_models(given), app, how, address, started)


def _models(given: WorkerOptions) -> list[ModelOptions]:
    listed = [] if (path := given.configuration_path) is None else read_configuration(path)
    listed += [model_options(each, f"model {each.get('name')!r}") for each in given.models]
    return check_models(listed)


def _tls(http: Mapping[str, object]) -> tuple[tuple[str, Any], ...]:
    if not http.get("certificate") and (http.get("private_key") or http.get("client_ca")):
        raise OptionError("TLS needs a certificate", "give --tls-certificate")
    if http.get("certificate") and not http.get("private_key"):
        raise OptionError("Ray's proxies need the private key in a file of its own", "give --tls-key")
    return tuple((theirs, http[ours]) for ours, theirs in _HTTP.items() if http.get(ours))
