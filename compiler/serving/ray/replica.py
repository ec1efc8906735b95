"""Replica of Ray Serve: the application, and loading models when they are first asked for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

from compiler.errors import InputError, OptionError
from compiler.serving.app.http import Call
from compiler.serving.repository import Repository

MODEL_HEADER = b"serve_multiplexed_model_id"
"""Ray's header: requests that have it go to a replica that has loaded the model."""
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/.*)?")


class RayControl:
    """The control of one replica, which must not differ from the others: models change by deploying again."""

    draining = False

    def __init__(self, repository: Repository) -> None:
        pass

    async def load(self, name: str) -> None:
        """Raises OptionError."""
        raise self._refused(name)

    async def unload(self, name: str) -> None:
        """Raises OptionError."""
        raise self._refused(name)

    def _refused(self, name: str) -> OptionError:
        return OptionError(
            f"model {name!r} cannot be loaded or unloaded in a Ray deployment by a request, which one replica gets",
            "deploy the application again; Ray replaces the replicas one after another",
        )


class MultiplexedModels:
    """Routes that answer nothing: they have the model of a request loaded before those that follow look for it."""

    def __init__(self, repository: Repository, serve: Any, at_once: int) -> None:
        """Make one.

        Args:
            serve: the package `ray.serve`.
            at_once: models that are loaded at most; the least recently used one is unloaded for another.
        """
        self._repository = repository

        async def load_model(name: str) -> Any:
            return await self._loaded(name)

        self._load: Callable[[str], Awaitable[Any]] = serve.multiplexed(max_num_models_per_replica=at_once)(load_model)

    async def answer(self, call: Call) -> None:
        """Have the model loaded that a request names: in its path, in Ray's header, or in its JSON.

        Raises what loading a module does.
        """
        name = _model_of(call)
        if name in self._repository.names:
            await self._load(name)

    async def _loaded(self, name: str) -> Any:
        await self._repository.load(name)

        async def unload() -> None:
            await self._repository.unload(name)

        # Ray awaits `__del__` of what it evicts, while no other model is loaded. Of the instance, not of a class:
        # Python must not call it as well.
        return SimpleNamespace(__del__=unload)


def _model_of(call: Call) -> str:
    found = _MODEL.fullmatch(call.path)
    if found is not None:
        return found.group(1)
    given = call.headers.get(MODEL_HEADER, b"").decode("latin-1")
    if given or call.method != "POST" or not call.path.startswith("/v1/"):
        return given
    try:
        content = call.json()
    except InputError:  # told by the route that answers
        return ""
    name = content.get("model") if isinstance(content, Mapping) else None
    return name if isinstance(name, str) else ""
