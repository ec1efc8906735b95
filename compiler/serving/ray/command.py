"""The options of `tensorwright serve` for Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import OptionError, ServiceUnavailableError
from compiler.serving.app.authentication import ApiKeys
from compiler.serving.app.create import AppOptions
from compiler.serving.configuration import ModelOptions, check_models, model_options, read_configuration, server_limits
from compiler.serving.ray.deployment import deployment, ray_package
from compiler.serving.ray.options import RayOptions, node_resources
from compiler.serving.workers.options import WorkerOptions

# Names of the server's TLS options in Ray's proxies.
_HTTP = {"certificate": "ssl_certfile", "private_key": "ssl_keyfile", "client_ca": "ssl_ca_certs"}


def serve_command(given: WorkerOptions, how: RayOptions, address: RayAddress, started: Callable[[str], None]) -> None:
    """Serve on Ray until SIGTERM or SIGINT. Raises as `serve_on_ray`, and OptionError for unsupported options."""
    if given.access_log:
        raise OptionError("--access-log is not available with Ray", "Ray's proxies log requests (serve/ in Ray's logs)")
    app = AppOptions(
        keys=ApiKeys(given.key_digests),
        limits=server_limits(given.configuration_path, given.limits),
        local_only=given.local_only,
        price=given.price,
        traces=given.traces,
    )
    serve_on_ray(_models(given), app, how, replace(address, http=_tls(given.http)), started)


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


_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RayAddress:
    """Address of an application of Ray Serve, and the cluster that it runs on.

    Attributes:
        host, port: of Ray's HTTP proxies.
        cluster: address of a running cluster; "": a cluster of only this machine, which ends with the command.
        http: more options of Ray's `HTTPOptions` (TLS).
    """

    host: str
    port: int
    cluster: str = ""
    http: tuple[tuple[str, Any], ...] = ()


def serve_on_ray(
    models: Sequence[ModelOptions],
    options: AppOptions,
    how: RayOptions,
    address: RayAddress,
    started: Callable[[str], None],
) -> None:
    """Deploy an application, and keep it running until SIGTERM or SIGINT.

    Args:
        started: called with its URL when it answers.

    Raises:
        MissingDependencyError: Ray is not installed.
        OptionError: the port is 0, which Ray's proxies do not support; or as `deployment`.
        ServiceUnavailableError: Ray cannot be reached, or no replica could start.
    """
    if not address.port:
        raise OptionError("Ray's proxies need a port", "give --port")
    ray, serve = ray_package("ray"), ray_package("ray.serve")
    application = deployment(models, options, how)
    _connect(ray, models, how, address)
    try:
        http = {"host": address.host, "port": address.port, **dict(address.http)}
        serve.start(proxy_location="EveryNode", http_options=http)
        try:
            serve.run(application, name=how.name, route_prefix="/")
        except RuntimeError as error:
            raise ServiceUnavailableError(
                f"no replica of {how.name!r} could start: {error}", "the replicas' logs say why (serve/ in Ray's logs)"
            ) from error
        scheme = "https" if "ssl_certfile" in http else "http"
        started(f"{scheme}://{f'[{address.host}]' if ':' in address.host else address.host}:{address.port}")
        asyncio.run(_signal_to_stop())
        serve.delete(how.name)
    finally:
        if not address.cluster:
            serve.shutdown()
        ray.shutdown()


async def _signal_to_stop() -> None:
    """Wait for SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    await stop.wait()


def _connect(ray: Any, models: Sequence[ModelOptions], how: RayOptions, address: RayAddress) -> None:
    """Connect to a cluster, or start one on this machine."""
    if not address.cluster:
        # The command's own cluster sends no usage reports, unless asked to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        resources = node_resources(models) if how.placement else None
        ray.init(address="local", include_dashboard=False, resources=resources, log_to_driver=False)
        return
    _check_reachable(address.cluster)
    try:
        ray.init(address=address.cluster, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ServiceUnavailableError(f"there is no Ray cluster at {address.cluster}: {error}") from error


def _check_reachable(cluster: str) -> None:
    """Raise ServiceUnavailableError if HOST:PORT accepts no connection; Ray would wait for minutes."""
    host, found, port = cluster.removeprefix("ray://").rpartition(":")
    if not found or not port.isdecimal():  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ServiceUnavailableError(f"there is no Ray cluster at {cluster}: {error}") from error
