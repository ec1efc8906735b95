"""A worker process of a server: the application with its own connections.

Started by the supervisor with two inherited sockets: the source of connections (`Server.serve`), and the channel to the
supervisor.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import OptionError, TensorwrightError
from compiler.serving.app.application import Application, access_log
from compiler.serving.app.authentication import ApiKeys
from compiler.serving.app.create import AppOptions, create_app
from compiler.serving.configuration import (
    ModelOptions,
    check_models,
    model_options,
    options_from,
    read_configuration,
    server_limits,
)
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.tracing import Tracer
from compiler.serving.workers.channel import Channel, described, open_channel
from compiler.serving.workers.http_server import HttpOptions, Server
from compiler.serving.workers.options import WorkerOptions
from compiler.support.processes import receive_exactly
from targets.processors import usable_cores

_LENGTH_BYTES = 8
_FLUSH_SECONDS = 0.25
_log = logging.getLogger(__name__)


class SupervisedControl:
    """Control of a worker: asks the supervisor, which commands all workers."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.channel: Channel | None = None
        self.draining = False

    async def load(self, name: str) -> None:
        """See `Control`."""
        await self._ask("load", name)

    async def unload(self, name: str) -> None:
        """See `Control`."""
        await self._ask("unload", name)

    async def _ask(self, action: str, name: str) -> None:
        assert self.channel is not None
        await self.channel.ask({"action": action, "model": name})

    async def handle(self, message: Mapping[str, Any]) -> Any:
        """Handle a command of the supervisor."""
        action, name = message["action"], message.get("model", "")
        if action == "stage":
            await self.repository.stage(name)
        elif action == "commit":
            self.repository.commit(name)
        elif action == "discard":
            await self.repository.discard(name)
        elif action == "unload":
            await self.repository.unload(name)
        elif action == "names":
            return list(self.repository.names)
        return None


class _SupervisorChannel:
    """The channel to the supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def open(self, control: SupervisedControl | None) -> Channel:
        """Connect to the supervisor."""
        if self._channel is None:
            self._channel = channel = await open_channel(self._sock, _nothing if control is None else control.handle)
            if control is not None:
                control.channel = channel
            self._tasks.append(asyncio.create_task(channel.serve()))
        return self._channel

    def ready(self) -> None:
        """Report that requests are answered."""
        assert self._channel is not None
        self._tasks.append(asyncio.create_task(self._channel.ask({"action": "ready"})))

    async def failed(self, error: TensorwrightError) -> None:
        """Report the error for which the worker cannot start."""
        channel = await self.open(None)
        await channel.ask({"action": "failed", "error": described(error)})

    def when_gone(self, stop: Callable[[], None]) -> None:
        """Call a function when the supervisor is gone."""
        self._tasks[0].add_done_callback(lambda _: stop())


async def _flushed(metrics: Metrics) -> None:
    """Publish this worker's metrics to the others."""
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        metrics.flush()


async def _nothing(message: Mapping[str, Any]) -> Any:
    return None


@dataclass
class _Worker:
    options: WorkerOptions
    source: socket.socket
    talking: socket.socket
    _tracer: Tracer | None = None

    async def run(self) -> int:
        controls: list[SupervisedControl] = []

        def control(repository: Repository) -> SupervisedControl:
            controls.append(SupervisedControl(repository))
            return controls[0]

        talking = _SupervisorChannel(self.talking)
        try:
            app = self._app(control)
            supervised = controls[0]
            await talking.open(supervised)
            await app.start()
            gc.collect()
            gc.freeze()  # permanent objects, which garbage collections during requests then skip
            server = Server(app, options_from(HttpOptions, self.options.http, "http"), talking.ready)
        except TensorwrightError as error:
            await talking.failed(error)
            return error.exit_code

        def stop() -> None:
            supervised.draining = True
            server.stop()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        talking.when_gone(stop)
        counting = asyncio.create_task(_flushed(app.metrics))
        await server.serve(self.source)
        counting.cancel()
        await app.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        return 0

    def _app(self, control: Any) -> Application:
        options = self.options
        self._tracer = Tracer(options.otlp) if options.otlp else None
        app_options = AppOptions(
            keys=ApiKeys(options.key_digests),
            limits=server_limits(options.configuration_path, options.limits),
            local_only=options.local_only,
            price=options.price,
            traces=options.traces,
            tracer=self._tracer,
        )
        return create_app(self._models(), app_options, control=control)

    def _models(self) -> list[ModelOptions]:
        options = self.options
        listed = [] if (path := options.configuration_path) is None else read_configuration(path)
        listed += [model_options(each, f"model {each.get('name')!r}") for each in options.models]
        cores = max(1, usable_cores() // options.workers)
        return [replace(each, cores=cores) if each.cores is None else each for each in check_models(listed)]


def _read_options(sock: socket.socket) -> WorkerOptions:
    length = int.from_bytes(receive_exactly(sock, _LENGTH_BYTES), "little")
    options = pickle.loads(receive_exactly(sock, length))  # from the parent process
    if not isinstance(options, WorkerOptions):
        raise OptionError("the supervisor sent no options")
    return options


class _AccessFile(logging.FileHandler):
    """The access log in a file; a full disk is reported once, and requests continue."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name in the standard library)
        """See `logging.Handler`, which would write a traceback for each lost line."""
        if not self._failed:
            self._failed = True
            _log.warning("the access log cannot be written: %s", sys.exc_info()[1])


def _configure_logs(options: WorkerOptions) -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(process)d %(message)s"
    )
    access_log.setLevel(logging.INFO if options.access_log else logging.WARNING)
    if options.access_log:
        handler = logging.StreamHandler(sys.stdout) if options.access_log == "-" else _AccessFile(options.access_log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        access_log.addHandler(handler)
        access_log.propagate = False


def main() -> int:
    """Run a worker until it is stopped, or its supervisor is gone."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C is handled by the supervisor, which stops workers
    source, talking = (socket.socket(fileno=int(each)) for each in sys.argv[1:3])
    options = _read_options(talking)
    _configure_logs(options)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        import uvloop
    except ModuleNotFoundError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(_Worker(options, source, talking).run())


if __name__ == "__main__":
    sys.exit(main())
