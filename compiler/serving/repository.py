"""`Repository`: the models of a server, which are loaded, replaced and unloaded while it answers.

`Control` changes the models of a server, in this process or in all of its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from compiler.artifact.variants import VARIANTS_FILE
from compiler.errors import ModelNotFoundError, ServiceUnavailableError, StorageError, TensorwrightError
from compiler.serving.configuration import ModelOptions, build_service
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.service import Service
from compiler.serving.text.service import TextService
from compiler.support.model_files import is_language_model
from compiler.support.shown import shown

_MODULE = "model.twm"
_log = logging.getLogger(__name__)


def _log_failure(name: str, version: str, error: TensorwrightError) -> None:
    _log.error("model %s: version %s was not loaded: %s", name, version, error.message)


@dataclass(frozen=True)
class ModelStatus:
    """An entry of the index.

    Attributes:
        state: "READY", "UNAVAILABLE", or "LOADING".
        reason: reason for which it is not ready, or for which a newer version was refused.
    """

    name: str
    version: str
    state: str
    reason: str = ""


class Loaded:
    """A loaded version; it is closed when it is no longer in use."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> Service:
        """Keep it open while in use."""
        self._users += 1
        if self._users == 1:
            self._unused.clear()
        return self.service

    def __exit__(self, *error: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def close(self) -> None:
        """Wait for its users, and close it."""
        await self._unused.wait()
        await self.service.close()


class Repository:
    """The models of a server, by name; one version of each answers at a time.

    A new version is loaded and verified while the old one answers; if it fails, the old one stays.
    """

    def __init__(
        self, models: Sequence[ModelOptions], observer: Observer = NO_OBSERVER, *, on_demand: bool = False
    ) -> None:
        """Create a repository. `on_demand`: `start` loads no model; each is loaded by `load`."""
        self._on_demand = on_demand
        self._options = {each.name: each for each in models}
        self._observer = observer
        self._loaded: dict[str, Loaded] = {}
        self._staged: dict[str, Loaded] = {}
        self._reasons: dict[str, str] = {}
        self._locks = {name: asyncio.Lock() for name in self._options}
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the newest loadable version of each model, unless they are loaded on demand.

        Raises the error of the first model without a loadable version.
        """
        if self._on_demand:
            return
        for name in self._options:
            await self._start(name)

    async def _start(self, name: str) -> None:
        failed: list[tuple[str, TensorwrightError]] = []
        for path, version in versions_of(self._options[name].path):
            try:
                await self._stage(name, path, version)
            except TensorwrightError as error:
                failed.append((version, error))
            else:
                reason = self._reasons.get(name, "")
                self.commit(name)
                for newer, reported in failed:
                    _log_failure(name, newer, reported)
                    self._reasons[name] = reason
                return
        raise failed[0][1]

    @property
    def ready(self) -> bool:
        """True if all models answer, or can be loaded on demand."""
        return self._on_demand or len(self._loaded) == len(self._options)

    @property
    def reads_text(self) -> bool:
        """True if any loaded model is a language model."""
        return any(isinstance(each.service, TextService) for each in self._loaded.values())

    @property
    def adapters(self) -> dict[str, str]:
        """Map adapter names of the loaded language models to model names, except adapters with the name of a model."""
        models: dict[str, str] = {}
        for name, each in self._loaded.items():
            if isinstance(each.service, TextService):
                for adapter in each.service.model.module.adapters:
                    if adapter not in self._options:
                        models.setdefault(adapter, name)
        return models

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models, loaded or not."""
        return tuple(self._options)

    def has(self, name: str) -> bool:
        """True if there is a model with that name, loaded or not."""
        return name in self._options

    def options(self, name: str) -> ModelOptions:
        """Return the options of a model. Raises ModelNotFoundError."""
        if name not in self._options:
            raise ModelNotFoundError(f"there is no model {shown(name)}", f"there are {', '.join(self._options)}")
        return self._options[name]

    def service(self, name: str, version: str | None = None) -> Service:
        """Return the service of a model. Raises ModelNotFoundError if there is no such model or version, and
        ServiceUnavailableError if it is not loaded."""
        return self._find(name, version).service

    def lease(self, name: str, version: str | None = None) -> contextlib.AbstractContextManager[Service]:
        """Return the service of a model, kept open while in use; raises as `service`."""
        return self._find(name, version)

    def _find(self, name: str, version: str | None) -> Loaded:
        loaded = self._loaded.get(name)
        if loaded is None:
            self.options(name)
            reason = self._reasons.get(name, "it is not loaded")
            raise ServiceUnavailableError(f"model {name!r} does not answer: {reason}")
        if version is not None and version != loaded.service.version:
            raise ModelNotFoundError(
                f"model {name!r} has no version {shown(version)} here", f"version {loaded.service.version} answers"
            )
        return loaded

    def index(self) -> list[ModelStatus]:
        """Return all models with their states and reasons."""
        lines = []
        for name in self._options:
            loaded, reason = self._loaded.get(name), self._reasons.get(name, "")
            version = "" if loaded is None else loaded.service.version
            lines.append(ModelStatus(name, version, "READY" if loaded is not None else "UNAVAILABLE", reason))
        return lines

    async def load(self, name: str) -> None:
        """Load a model, or replace it by its newest version.

        Raises:
            ModelNotFoundError: there is no such model.
            StorageError, ArtifactError, VerificationError, ...: as loading a module; the old version stays.
        """
        await self.stage(name)
        self.commit(name)

    async def stage(self, name: str) -> None:
        """The first half of `load`: load and verify a version, which does not answer yet."""
        path, version = versions_of(self.options(name).path)[0]
        try:
            await self._stage(name, path, version)
        except TensorwrightError as error:
            _log_failure(name, version, error)
            raise

    async def _stage(self, name: str, path: Path, version: str) -> None:
        async with self._locks[name]:
            await self.discard(name)
            try:
                service = await asyncio.to_thread(build_service, self._options[name], path, version, self._observer)
                await service.start()
            except TensorwrightError as error:
                self._reasons[name] = f"loading failed: version {version}: {error.message}"
                raise
            self._staged[name] = Loaded(service)

    def commit(self, name: str) -> None:
        """The second half of `load`: switch to the staged version."""
        staged = self._staged.pop(name, None)
        if staged is None:
            raise ServiceUnavailableError(f"no version of model {name!r} is staged")
        self._close_later(self._loaded.get(name))
        self._loaded[name] = staged
        self._reasons.pop(name, None)
        _log.info("model %s: version %s answers", name, staged.service.version)

    async def discard(self, name: str) -> None:
        """Discard a staged version."""
        staged = self._staged.pop(name, None)
        if staged is not None:
            await staged.close()

    async def unload(self, name: str) -> None:
        """Unload a model after its accepted requests are answered.

        Raises ModelNotFoundError.
        """
        self.options(name)
        loaded = self._loaded.pop(name, None)
        self._reasons[name] = "it was unloaded"
        if loaded is not None:
            await loaded.close()

    def _close_later(self, loaded: Loaded | None) -> None:
        if loaded is not None:
            task = asyncio.get_running_loop().create_task(loaded.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Answer accepted requests, and close everything."""
        everything = [*self._loaded.values(), *self._staged.values()]
        self._loaded.clear()
        self._staged.clear()
        await asyncio.gather(*(each.close() for each in everything), *self._closing)


@asynccontextmanager
async def running(repository: Repository) -> AsyncIterator[Repository]:
    """Start a repository, and close it at the end."""
    try:
        await repository.start()
        yield repository
    finally:
        await repository.close()


def versions_of(path: Path) -> list[tuple[Path, str]]:
    """Return the module files or variant folders of a model with their versions, newest first; a file is version 1.

    Raises StorageError for a folder without versions.
    """
    if not path.is_dir() or (path / VARIANTS_FILE).exists():
        return [(path, "1")]
    numbers = (each.name for each in path.iterdir() if each.name.isascii() and each.name.isdecimal() and each.is_dir())
    versions = sorted(set(map(int, numbers)), reverse=True)
    if not versions:
        if is_language_model(path):
            hint = f"compile it first: tensorwright compile {path}"
            raise StorageError(f"{path} is a model, not a compiled module", hint)
        raise StorageError(f"{path} holds no versions", f"put a module there as 1/{_MODULE}")
    folders = [(path / str(version), str(version)) for version in versions]
    return [(each if (each / VARIANTS_FILE).exists() else each / _MODULE, version) for each, version in folders]


class Control(Protocol):
    """Loads and unloads models for the whole server."""

    @property
    def draining(self) -> bool:
        """True if the server is shutting down: it answers accepted requests, and is not ready for more."""

    async def load(self, name: str) -> None:
        """Switch to the newest version of a model, in all processes or in none. Raises as `Repository.load`."""

    async def unload(self, name: str) -> None:
        """Unload a model. Raises as `Repository.unload`."""


class LocalControl:
    """Control of a server with a single process."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.draining = False

    async def load(self, name: str) -> None:
        """See `Control`."""
        await self._repository.load(name)

    async def unload(self, name: str) -> None:
        """See `Control`."""
        await self._repository.unload(name)
