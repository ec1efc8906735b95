"""`deployment`: the HTTP application as a Ray Serve application."""

from __future__ import annotations

import importlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from compiler.errors import InputError, MissingDependencyError, OptionError
from compiler.serving.app.application import Application
from compiler.serving.app.create import AppOptions, create_app
from compiler.serving.app.http import Call
from compiler.serving.configuration import ModelOptions, check_models
from compiler.serving.ray.options import RayOptions, required_resources
from compiler.serving.repository import Repository
from compiler.serving.tracing import Tracer
from compiler.support.optional import optional_module
from targets.extras import install_command


def ray_package(name: str) -> Any:
    """Import a module of Ray. Raises MissingDependencyError if Ray, or a package that the module needs, is missing."""
    optional_module("ray", "ray", "runs deployments on a cluster")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{name} cannot be loaded: {error}", install_command("ray")) from error


def deployment(models: Sequence[ModelOptions], options: AppOptions | None = None, ray: RayOptions | None = None) -> Any:
    """Create a Ray Serve application for `serve.run`: replicas that each run `create_app(models, options)`.

    Each replica reads the modules from their paths, the same on all nodes: a shared folder, or one image.

    Args:
        options: without API keys, and unless `local_only` is False, only requests from this machine to its own name
            are answered.

    Raises:
        MissingDependencyError: Ray is not installed.
        OptionError: invalid options, or a tracer, which cannot be sent to replicas (use `RayOptions.otlp`).
        StorageError, ArtifactError: for `placement`, a module cannot be read here.
    """
    serve = ray_package("ray.serve")
    options, how = options or AppOptions(), ray or RayOptions()
    if options.tracer is not None:
        raise OptionError("a tracer cannot be sent to replicas", "give RayOptions(otlp=URL)")
    placed = [
        replace(each, path=each.path.absolute(), cores=how.cores if each.cores is None else each.cores)
        for each in check_models(models)
    ]

    def build() -> Application:
        return _application(placed, options, how)

    return serve.deployment(serve.ingress(build)(), **_deployment_options(placed, how)).bind()


def _application(models: Sequence[ModelOptions], options: AppOptions, how: RayOptions) -> Application:
    """Create the application of one replica; called in the replica."""
    serve = ray_package("ray.serve")

    def multiplexed(repository: Repository) -> MultiplexedModels:
        return MultiplexedModels(repository, serve, how.multiplexed)

    if how.otlp:
        options = replace(options, tracer=Tracer(how.otlp))
    return create_app(models, options, control=RayControl, on_demand=multiplexed if how.multiplexed else None)


def _deployment_options(models: Sequence[ModelOptions], how: RayOptions) -> dict[str, Any]:
    actor: dict[str, Any] = {"num_cpus": how.cores}
    if how.placement:
        actor["resources"] = required_resources(models)
    settings: dict[str, Any] = {
        "name": how.name,
        "max_ongoing_requests": how.max_ongoing_requests,
        "graceful_shutdown_timeout_s": how.drain_s,
        "ray_actor_options": actor,
    }
    if how.min_replicas == how.max_replicas:
        return {**settings, "num_replicas": how.min_replicas}
    scaling = {
        "min_replicas": how.min_replicas,
        "max_replicas": how.max_replicas,
        "target_ongoing_requests": how.target_ongoing_requests,
        "upscale_delay_s": how.upscale_delay_s,
        "downscale_delay_s": how.downscale_delay_s,
    }
    return {**settings, "autoscaling_config": scaling}


MODEL_HEADER = b"serve_multiplexed_model_id"
"""Ray's header: requests with it go to a replica that has loaded the model."""
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/.*)?")


class RayControl:
    """Control of one replica, which must not differ from the others: models change only by redeployment."""

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
            f"model {name!r} cannot be loaded or unloaded by a request in a Ray deployment: only one replica gets it",
            "deploy the application again; Ray replaces the replicas one after another",
        )


class MultiplexedModels:
    """Routes that never answer, but load the model of a request before the following routes look for it."""

    def __init__(self, repository: Repository, serve: Any, at_once: int) -> None:
        """Create the routes.

        Args:
            serve: the package `ray.serve`.
            at_once: maximum number of loaded models; the least recently used one is unloaded for another.
        """
        self._repository = repository

        async def load_model(name: str) -> Any:
            return await self._loaded(name)

        self._load: Callable[[str], Awaitable[Any]] = serve.multiplexed(max_num_models_per_replica=at_once)(load_model)

    async def answer(self, call: Call) -> None:
        """Load the model that a request names in its path, in Ray's header, or in its JSON.

        Raises as loading a module.
        """
        name = await _model_of(call)
        if name in self._repository.names:
            await self._load(name)

    async def _loaded(self, name: str) -> Any:
        await self._repository.load(name)

        async def unload() -> None:
            await self._repository.unload(name)

        # Ray awaits `__del__` of an evicted object, while no other model is loaded. It is set on the instance, not on a
        # class, so that Python does not call it as well.
        return SimpleNamespace(__del__=unload)


async def _model_of(call: Call) -> str:
    found = _MODEL.fullmatch(call.path)
    if found is not None:
        return found.group(1)
    given = call.headers.get(MODEL_HEADER, b"").decode("latin-1")
    if given or call.method != "POST" or not call.path.startswith("/v1/"):
        return given
    try:
        content = await call.json()
    except InputError:  # reported by the route that answers
        return ""
    name = content.get("model") if isinstance(content, Mapping) else None
    return name if isinstance(name, str) else ""
