"""`Supervisor`: starts the worker processes of a server, restarts those that die, and reloads models in all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.errors import OptionError, ServiceUnavailableError, StorageError, TensorwrightError
from compiler.serving.workers.channel import Channel, as_error, open_channel
from compiler.serving.workers.distributor import Distributor, handing_pair
from compiler.serving.workers.options import WorkerOptions
from compiler.support.optional import optional_module

_log = logging.getLogger(__name__)
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_MEMORY = "/dev/shm"  # a file system in memory
_KILL_AFTER = 5.0  # seconds in addition to the drain time of requests
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before a worker that died at startup is restarted
_BACKLOG = 2048
_NEEDED = {"httptools": "parses HTTP", "orjson": "reads and writes JSON"}


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket to an address, without listening yet; port 0 chooses a free one.

    Raises StorageError if the address is in use or not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise StorageError(f"{host}:{port} cannot be served: {error.strerror}", "choose another --port") from error
    return sock


@dataclass(eq=False)
class _Process:
    """One worker process; `handing`: socket over which it receives connections, if it does not accept them itself."""

    process: asyncio.subprocess.Process
    handing: socket.socket | None
    channel: Channel
    ready: asyncio.Future[None]
    reading: asyncio.Task[None]


class Supervisor:
    """Runs a server until it is stopped."""

    def __init__(
        self,
        options: WorkerOptions,
        sock: socket.socket,
        *,
        drain_seconds: float = 30.0,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a supervisor.

        Args:
            sock: a bound socket, not listening.
            drain_seconds: time for workers to answer accepted requests at shutdown.
            started: called when the server answers.
        """
        self._options, self._socket = options, sock
        self._drain_seconds, self._started = drain_seconds, started
        self._workers: set[_Process] = set()
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._folder: str | None = None
        self._distributor: Distributor | None = None

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes."""
        return [each.process.pid for each in self._workers]

    async def run(self) -> None:
        """Serve until `stop`.

        Raises the error that keeps a worker from starting the first time.
        """
        if self._options.workers > 1:
            # Workers memory-map their counters: on a full disk, writing to them would kill the worker.
            memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
            self._folder = tempfile.mkdtemp(prefix="tensorwright-metrics-", dir=memory)
            self._distributor = Distributor(self._socket, _BACKLOG)
        keepers: list[asyncio.Task[None]] = []
        try:
            workers = [await self._spawn() for _ in range(self._options.workers)]
            if not await self._all_ready(workers):
                return
            self._started()
            keepers = [asyncio.create_task(self._keep(each)) for each in workers]
            await self._stopping.wait()
        finally:
            self._stopping.set()
            if self._distributor is not None:
                self._distributor.close()
            self._socket.close()
            await self._end_all()
            await asyncio.gather(*keepers, return_exceptions=True)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def _all_ready(self, workers: list[_Process]) -> bool:
        """Wait for the workers; False if the server is stopped first. Raises the error of a failing worker."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        ready = asyncio.gather(*(each.ready for each in workers))
        both: set[asyncio.Future[Any]] = {stopping, ready}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ready.done():
            ready.cancel()
            return False
        await ready
        return True

    def stop(self) -> None:
        """Stop accepting connections, answer accepted requests, and end; on a second call, end at once."""
        if self._stopping.is_set():
            for each in self._workers:
                _signal(each, signal.SIGKILL)
        self._stopping.set()

    async def reload(self) -> None:
        """Load the newest version of every model in all workers; one that cannot be loaded keeps its old version."""
        for worker in list(self._workers)[:1]:
            for name in await worker.channel.ask({"action": "names"}):
                with contextlib.suppress(TensorwrightError):  # the reason is in the workers' logs
                    await self._load(name)

    async def _keep(self, worker: _Process) -> None:
        """Keep a worker process running as long as the server."""
        pause = _FIRST_PAUSE
        while True:
            await worker.process.wait()
            self._forget(worker)
            if self._stopping.is_set():
                return
            _log.error("worker %d died (%s) and is started again", worker.process.pid, worker.process.returncode)
            while not self._stopping.is_set():
                worker = await self._spawn()
                try:
                    await worker.ready
                except TensorwrightError as error:
                    _log.error("a worker cannot start: %s", error.message)
                    await worker.process.wait()
                    self._forget(worker)
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    pause = _FIRST_PAUSE
                    break

    def _forget(self, worker: _Process) -> None:
        self._workers.discard(worker)
        worker.channel.close()
        if self._distributor is not None and worker.handing is not None:
            self._distributor.remove(worker.handing)
            worker.handing.close()

    async def _spawn(self) -> _Process:
        ours, theirs = socket.socketpair()
        handing, source = (None, self._socket) if self._distributor is None else handing_pair()
        environment = dict(os.environ)
        if self._folder is not None:
            environment[_METRICS_FOLDER] = self._folder
        command = [sys.executable, "-m", "compiler.serving.workers.worker", str(source.fileno()), str(theirs.fileno())]
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(source.fileno(), theirs.fileno()), stdin=subprocess.DEVNULL, env=environment
        )
        theirs.close()
        if handing is not None:
            source.close()
        content = pickle.dumps(self._options)
        ours.sendall(len(content).to_bytes(8, "little") + content)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel = await open_channel(ours, self._handler(ready, handing))
        reading = asyncio.create_task(channel.serve())
        reading.add_done_callback(lambda _: _fail(ready, ServiceUnavailableError("a worker died while starting")))
        worker = _Process(process, handing, channel, ready, reading)
        self._workers.add(worker)
        return worker

    def _handler(
        self, ready: asyncio.Future[None], handing: socket.socket | None
    ) -> Callable[[Mapping[str, Any]], Awaitable[Any]]:
        async def handle(message: Mapping[str, Any]) -> Any:
            action = message["action"]
            if action == "ready" and not ready.done():
                ready.set_result(None)
                if self._distributor is not None and handing is not None and not self._stopping.is_set():
                    self._distributor.add(handing)
            elif action == "failed":
                _fail(ready, as_error(message["error"]))
            elif action == "load":
                await self._load(message["model"])
            elif action == "unload":
                await asyncio.gather(
                    *(each.channel.ask(message_of("unload", message["model"])) for each in self._running())
                )

        return handle

    async def _load(self, name: str) -> None:
        """Make all workers load a new version while the old one answers, and then switch, or none of them."""
        async with self._reloading:
            workers = self._running()
            staged = [each.channel.ask(message_of("stage", name)) for each in workers]
            failures = [each for each in await asyncio.gather(*staged, return_exceptions=True) if each is not None]
            action = "discard" if failures else "commit"
            await asyncio.gather(
                *(each.channel.ask(message_of(action, name)) for each in workers), return_exceptions=True
            )
            if failures:
                raise failures[0]

    def _running(self) -> list[_Process]:
        return [each for each in self._workers if each.ready.done() and each.ready.exception() is None]

    async def _end_all(self) -> None:
        workers = list(self._workers)
        for worker in workers:
            _signal(worker, signal.SIGTERM)
        ends = [asyncio.ensure_future(each.process.wait()) for each in workers]
        if ends:
            _, late = await asyncio.wait(ends, timeout=self._drain_seconds + _KILL_AFTER)
            if late:
                for worker in workers:
                    _signal(worker, signal.SIGKILL)
                await asyncio.wait(late)
        for worker in workers:
            self._forget(worker)


def message_of(action: str, name: str) -> dict[str, str]:
    """Create a command to a worker about a model."""
    return {"action": action, "model": name}


def _signal(worker: _Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.process.send_signal(number)


def _fail(ready: asyncio.Future[None], error: Exception) -> None:
    if not ready.done():
        ready.set_exception(error)
        ready.exception()  # retrieved: a waiter gets it, but there may be none


def serve(
    options: WorkerOptions, host: str, port: int, *, drain_seconds: float, started: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP loads new versions of all models.

    Args:
        started: called with the server's URL when it answers.

    Raises:
        StorageError: the address is in use.
        MissingDependencyError: a package that workers need is missing.
        OptionError, ...: the server cannot start.
    """
    if options.workers < 1:
        raise OptionError(f"there must be 1 worker at least, not {options.workers}")
    for package, purpose in _NEEDED.items():
        optional_module(package, "serve", purpose)
    with listen(host, port) as sock:
        asyncio.run(_serve(options, sock, drain_seconds, started))


async def _serve(
    options: WorkerOptions, sock: socket.socket, drain_seconds: float, started: Callable[[str], None]
) -> None:
    scheme = "https" if options.http.get("certificate") else "http"
    host, port = sock.getsockname()[:2]
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    supervisor = Supervisor(options, sock, drain_seconds=drain_seconds, started=lambda: started(url))
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.add(loop.create_task(supervisor.reload())))
    await supervisor.run()
