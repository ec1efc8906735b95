"""`deployment`: the HTTP application as an application of Ray Serve."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from compiler.errors import MissingDependencyError, OptionError
from compiler.serving.app.application import Application
from compiler.serving.app.create import AppOptions, create_app
from compiler.serving.configuration import ModelOptions, check_models
from compiler.serving.ray.options import RayOptions
from compiler.serving.ray.placement import required_resources
from compiler.serving.ray.replica import MultiplexedModels, RayControl
from compiler.serving.repository import Repository
from compiler.serving.tracing import Tracer
from compiler.support.optional import optional_module


def ray_package(name: str) -> Any:
    """A module of Ray. Raises MissingDependencyError where Ray, or a package that its module needs, is missing."""
    optional_module("ray", "ray", "runs deployments on a cluster")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{name} cannot be loaded: {error}", "pip install 'tensorwright[ray]'") from error


def deployment(models: Sequence[ModelOptions], options: AppOptions | None = None, ray: RayOptions | None = None) -> Any:
    """An application of Ray Serve, for `serve.run`: replicas that each run `create_app(models, options)`.

    Each replica reads the modules from their paths, the same on all nodes: a shared folder, or one image.

    Args:
        options: without API keys, and unless `local_only` is False, only what asks for this machine by its own name is
            answered.

    Raises:
        MissingDependencyError: Ray is not installed.
        OptionError: options that do not fit; a tracer, which cannot be sent to replicas (`RayOptions.otlp` can).
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
    """The application of one replica; called there."""
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
    given: dict[str, Any] = {
        "name": how.name,
        "max_ongoing_requests": how.max_ongoing_requests,
        "graceful_shutdown_timeout_s": how.drain_s,
        "ray_actor_options": actor,
    }
    if how.min_replicas == how.max_replicas:
        return {**given, "num_replicas": how.min_replicas}
    scaling = {
        "min_replicas": how.min_replicas,
        "max_replicas": how.max_replicas,
        "target_ongoing_requests": how.target_ongoing_requests,
        "upscale_delay_s": how.upscale_delay_s,
        "downscale_delay_s": how.downscale_delay_s,
    }
    return {**given, "autoscaling_config": scaling}
