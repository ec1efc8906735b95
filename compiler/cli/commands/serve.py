"""`tensorwright serve`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.cli import options
from compiler.cli.options import argument, command_of, flag, option
from compiler.cli.output import print_line
from compiler.errors import OptionError

if TYPE_CHECKING:
    from compiler.serving.workers.options import WorkerOptions

HELP = """Serve modules over HTTP, with batching, in worker processes that are restarted when they die.

Supports the Open Inference Protocol v2 (JSON and binary tensors: tritonclient), OpenAI's embeddings, completions and
chat routes, and Prometheus metrics at /metrics; a status page is at /. The server listens on 127.0.0.1; on other
addresses it requires API keys or --insecure.

[bold]Typical[/]

  tensorwright serve model.twm

[bold]Examples[/]

  Two named models, on all addresses, for clients with a key, encrypted:
    tensorwright serve embed=minilm.twm chat=smollm2.twm --host 0.0.0.0 --api-keys keys.txt --tls-certificate
    server.pem --tls-key server.key

  A folder of versions (models/minilm/1/model.twm, ...); POST /v2/repository/models/minilm/load or SIGHUP switches to a
  newer version without a failed request:
    tensorwright serve models/minilm

  Answer within 50 ms or refuse at once; cache equal requests; four worker processes:
    tensorwright serve model.twm --latency 50 --exact-cache 256 --workers 4

  Everything from a file (models, batches, caches, variants):
    tensorwright serve --config server.yaml

  On a Ray cluster, two to eight replicas by load, on nodes with the processor features that the module requires:
    tensorwright serve model.twm --engine ray --ray-address auto --workers 2 --max-workers 8 --placement
"""


class Engine(str, Enum):
    """The engine that runs the server's workers."""

    PROCESSES = "processes"
    RAY = "ray"


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class _Options:
    modules: list[str] | None = argument("Modules (.twm), or folders of versions.", "[NAME=]MODULE...", default=None)
    config: Path | None = option("A file that lists models and their options.", "FILE.yaml")
    host: str = option("Where to listen.", "ADDRESS", default="127.0.0.1")
    port: int = option("0 chooses a free one.", "PORT", default=8000, min=0, max=65535)
    workers: int = option("Number of worker processes; with Ray: replicas.", "N", default=1, min=1, max=256)
    engine: Engine = option("Run workers as local processes, or on Ray Serve.", default=Engine.PROCESSES)
    ray_address: str = option(
        "Address of a running Ray cluster; if not given, one is started here.", "ADDRESS", default=""
    )
    max_workers: int | None = option("Ray: scale by load from --workers to N replicas.", "N", min=1)
    replica_cores: int = option("Ray: cores per replica.", "N", default=1, min=1)
    multiplexed: int = option(
        "Ray: a replica loads models on demand, at most N at once; 0: all at start.", "N", default=0, min=0
    )
    placement: bool = flag("Ray: only on nodes with the processor features of the modules.", "--placement")
    api_keys: Path | None = option(
        "API keys of clients, one per line; TENSORWRIGHT_API_KEYS adds others, separated by commas.", "FILE"
    )
    insecure: bool = flag("Listen on a public address without API keys.", "--insecure")
    max_batch_size: int = option("Maximum rows per batch.", "ROWS", default=32, min=1)
    min_batch_size: int = option("Minimum rows that a batch waits for.", "ROWS", default=1, min=1)
    max_wait: float = option("Maximum time that it waits for them.", "MS", default=0.0, min=0)
    max_queue: int = option("Maximum queued rows; more are refused.", "ROWS", default=1024, min=1)
    latency: float | None = option("Deadline of requests that do not set one.", "MS", min=0.001)
    threads: int | None = options.THREADS
    runners: int | None = option("Concurrent runs of a model; by the number of cores if not given.", "N", min=1)
    exact_cache: float | None = option("Cache answers to equal requests, up to this many MB.", "MB", min=0.001)
    tokenizer: Path | None = option("A tokenizer.json for the embeddings route, if the module has none.", "FILE")
    access_log: str = option("Write one line per request; - for standard output.", "FILE", default="")
    max_request: float | None = option("Largest request; 67 if not given.", "MB", min=0.001)
    request_seconds: float | None = option("Time for a request to arrive; 30 if not given.", "S", min=0.1)
    limit: list[str] | None = option("Another limit of requests, such as prompts=16; can be repeated.", "NAME=NUMBER")
    drain: float = option("Time for requests to finish at shutdown.", "S", default=30.0, min=0)
    tls_certificate: Path | None = option("Certificate (PEM); enables TLS.", "FILE")
    tls_key: Path | None = option("The certificate's private key (PEM).", "FILE")
    tls_key_password: Path | None = option("File with the password of an encrypted private key.", "FILE")
    tls_client_ca: Path | None = option("CA certificate (PEM) that must have signed clients' certificates.", "FILE")
    price: float = option("Price of a core per hour, for cost metrics.", "PRICE", default=0.0, min=0)
    traces: bool = flag("Allow requests to ask for a profile of the kernels (costs several runs).", "--traces")
    otlp: str = option("Send spans to this OpenTelemetry collector (OTLP over HTTP).", "URL", default="")


@command_of
def command(given: _Options) -> None:
    from compiler.serving.app.api_keys import read_api_keys
    from compiler.serving.workers.supervisor import serve

    keys = read_api_keys(given.api_keys)
    local = given.host in _LOOPBACK
    if not local and not keys and not given.insecure:
        raise OptionError(
            f"without API keys, anyone who can reach {given.host} could use the server",
            "give --api-keys FILE, or --insecure",
        )
    if not given.modules and given.config is None:
        raise OptionError("there is nothing to serve", "give a module, or --config FILE")
    served = _worker_options(given, keys, local)
    if given.engine is Engine.RAY:
        from compiler.serving.ray.command import RayAddress, serve_command
        from compiler.serving.ray.options import RayOptions

        how = RayOptions(
            min_replicas=given.workers,
            max_replicas=given.max_workers or given.workers,
            cores=given.replica_cores,
            multiplexed=given.multiplexed,
            placement=given.placement,
            drain_s=given.drain,
            otlp=given.otlp,
        )
        address = RayAddress(host=given.host, port=given.port, cluster=given.ray_address)
        serve_command(served, how, address, started=lambda url: print_line(f"serving on {url}"))
        return
    if (
        given.ray_address
        or given.max_workers is not None
        or given.replica_cores != 1
        or given.multiplexed
        or given.placement
    ):
        raise OptionError(
            "--ray-address, --max-workers, --replica-cores, --multiplexed and --placement are options of Ray",
            "give --engine ray",
        )
    serve(
        served, given.host, given.port, drain_seconds=given.drain, started=lambda url: print_line(f"serving on {url}")
    )


def _worker_options(given: _Options, keys: tuple[bytes, ...], local: bool) -> WorkerOptions:
    from compiler.serving.workers.options import WorkerOptions

    batch = {
        "max_batch_size": given.max_batch_size,
        "min_batch_size": given.min_batch_size,
        "max_wait_ms": given.max_wait,
        "max_queue": given.max_queue,
    }
    common: dict[str, Any] = {
        "batch": batch,
        "threads": given.threads,
        "runners": given.runners,
        "latency_ms": given.latency,
    }
    if given.exact_cache is not None:
        common["exact_cache"] = {"max_bytes": int(given.exact_cache * 1e6)}
    if given.tokenizer is not None:
        common["text"] = {"tokenizer": str(given.tokenizer)}
    http = {
        "drain_seconds": given.drain,
        "certificate": _path(given.tls_certificate),
        "private_key": _path(given.tls_key),
        "private_key_password_file": _path(given.tls_key_password),
        "client_ca": _path(given.tls_client_ca),
    }
    return WorkerOptions(
        models=tuple({**_named(each), **common} for each in given.modules or ()),
        configuration=None if given.config is None else str(given.config),
        workers=given.workers,
        key_digests=keys,
        local_only=local,
        http=http,
        limits=_limits(given),
        access_log=given.access_log,
        price=given.price,
        traces=given.traces,
        otlp=given.otlp,
    )


def _limits(given: _Options) -> dict[str, Any]:
    """Return the given limits; the server checks their names and values."""

    limits: dict[str, Any] = {}
    for text in given.limit or ():
        name, found, value = text.partition("=")
        if not found:
            raise OptionError(f"--limit takes NAME=NUMBER, not {text!r}")
        limits[name] = value
    if given.max_request is not None:
        limits["max_request_bytes"] = int(given.max_request * 1e6)
    if given.request_seconds is not None:
        limits["body_seconds"] = given.request_seconds
    return limits


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _named(text: str) -> dict[str, str]:
    name, found, path = text.partition("=")
    return {"name": name, "path": path} if found and "/" not in name else {"path": text}
