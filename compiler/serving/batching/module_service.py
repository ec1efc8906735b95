"""`ModuleService`: a compiled module that answers requests, one run each; and `Runners`, the threads that run the
modules of one model.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from compiler.artifact import TensorDescription
from compiler.errors import InputError, OptionError, ServiceUnavailableError
from compiler.runtime import Module, load
from compiler.runtime.identity import module_identity
from compiler.serving.batching.layout import BatchLayout, find_layout
from compiler.serving.request import Array, Request, Response, Timing
from targets.processors import usable_cores

Result = TypeVar("Result")


def served_by(name: str, version: str, variant: str) -> str:
    """Return the name of the computing model for a response."""
    return f"{name}/{version}/{variant}"


class ModuleService:
    """A module whose concurrent runs share the cores: one per runner, each with its own threads."""

    def __init__(
        self,
        module: Module,
        name: str,
        version: str = "1",
        variant: str = "default",
        *,
        runners: int | None = None,
        threads: int | None = None,
        cores: int | None = None,
        batched: bool = True,
    ) -> None:
        """Serve a module. Raises OptionError if a number is below 1.

        Args:
            runners: number of concurrent runs; None: as many as the cores have room for.
            threads: number of threads of each run; None: the cores divided by `runners`, at most the module's own
                setting.
            cores: number of cores to use; None for all.
            batched: look for rows that can run together (`layout`), which takes a few runs at start.
        """
        cores = usable_cores() if cores is None else cores
        if threads is None:
            # Two runners at least, so that one computes while the other's answers are sent.
            threads = max(1, cores // 2) if runners is None else max(1, cores // runners)
            threads = min(threads, module.threads)
        if threads < 1 or (runners is not None and runners < 1):
            raise OptionError(f"runners and threads must be 1 at least, not {runners} and {threads}")
        module.threads = threads
        self.module = module
        self.runners = max(1, cores // threads) if runners is None else runners
        self.served_by = served_by(name, version, variant)
        self.layout: BatchLayout | None = None
        self.name, self.version, self._batched = name, version, batched
        self._threads, self._started = Runners(name), False
        self._threads.join(self.runners)

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        return self.module.inputs

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        return self.module.outputs

    @cached_property
    def identity(self) -> str:
        """A digest of the module, used in cache keys."""
        return module_identity(self.module)

    @property
    def shares_threads(self) -> bool:
        """True if other modules run in the same threads: a run gives its thread back after each batch."""
        return self._threads.is_shared

    def share(self, threads: Runners) -> None:
        """Run in threads shared by several modules; call it before `start`."""
        self._threads = threads
        threads.join(self.runners)

    async def start(self) -> None:
        if not self._started:
            self._started = True
            self._threads.start()
            if self._batched:
                self.layout = await asyncio.wrap_future(self._threads.submit(find_layout, self.module))

    async def infer(self, request: Request) -> Response:
        check_outputs(self.outputs, request.outputs)
        outputs, started, seconds = await asyncio.wrap_future(self.submit(self.run, request.inputs))
        queued = max(0.0, started - request.arrival) if request.arrival else 0.0
        return Response(chosen(outputs, request.outputs), self.served_by, Timing(queued, seconds, 1, started + seconds))

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Call a function on a runner thread, where it may call `run`."""
        return self._threads.submit(function, *arguments)

    def run(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float, float]:
        """Run on the calling thread; return outputs, start time (`time.monotonic()`), and seconds."""
        started = time.monotonic()
        outputs: dict[str, Array] = self.module.run(inputs)
        return outputs, started, time.monotonic() - started

    async def close(self) -> None:
        if self._started:
            self._started = False
            await self._threads.close()


def load_proven(path: str | os.PathLike[str]) -> Module:
    """Load a module and verify its stored example, if it has one. Raises as `compiler.load`."""
    module = load(path)
    if module.artifact.reference_outputs:
        module.verify()
    return module


def check_outputs(outputs: tuple[TensorDescription, ...], wanted: tuple[str, ...] | None) -> None:
    """Raise InputError for an unknown output."""
    if wanted is not None:
        names = [each.name for each in outputs]
        for name in wanted:
            if name not in names:
                raise InputError(f"the model has no output {name!r}", f"its outputs are {', '.join(names)}")


def chosen(outputs: Mapping[str, Array], wanted: tuple[str, ...] | None) -> Mapping[str, Array]:
    """Select the wanted outputs of a run."""
    return outputs if wanted is None else {name: outputs[name] for name in wanted}


class Runners:
    """One thread per concurrent run. Several modules, such as those of a cascade, can share them.

    They exist as long as one of these modules is started, and serve submitted work first come, first served.
    """

    def __init__(self, name: str) -> None:
        """`name`: name of the model."""
        self._name = name
        self._members = self._count = self._started = 0
        self._pool: ThreadPoolExecutor | None = None

    @property
    def is_shared(self) -> bool:
        """True if several modules take turns."""
        return self._members > 1

    def join(self, count: int) -> None:
        """Add a module with this many concurrent runs; call it before any module starts."""
        self._members += 1
        self._count = max(self._count, count)

    def start(self) -> None:
        """Start for one of the modules."""
        self._started += 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix=f"serve-{self._name}")

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Call a function in one of the threads. Raises ServiceUnavailableError if no module is started."""
        if self._pool is None:
            raise ServiceUnavailableError(f"model {self._name!r} is not running")
        return self._pool.submit(function, *arguments)

    async def close(self) -> None:
        """Close for one of the modules; the last one waits for submitted work."""
        self._started -= 1
        if not self._started and self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
