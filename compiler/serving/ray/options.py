"""`RayOptions`: number, placement and models of Ray replicas.

Ray resources represent processor features, so that modules are placed on nodes that can run their machine code. A node
declares a resource for each feature (`node_resources`), and a replica requests a small share of those that its modules
require (`required_resources`): a module that uses VNNI is placed on nodes with VNNI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import read_artifact
from compiler.artifact.variants import VARIANTS_FILE, read_variants
from compiler.errors import OptionError
from compiler.serving.configuration import ModelOptions
from compiler.serving.repository import versions_of
from targets import cpuinfo


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options of an application on Ray Serve.

    Attributes:
        name: name of the deployment.
        min_replicas, max_replicas: number of replicas; if they differ, Ray scales by load.
        target_ongoing_requests: concurrent requests per replica for which Ray scales.
        max_ongoing_requests: maximum concurrent requests per replica; more wait in Ray's proxies.
        cores: number of cores of a replica: reserved by Ray (`num_cpus`), and used by its models.
        upscale_delay_s, downscale_delay_s: time that the load must persist before replicas are added or removed.
        drain_s: time for requests to finish when a replica stops.
        multiplexed: number of models that a replica keeps loaded; each is loaded at its first request, and the least
            recently used one is unloaded (`serve.multiplexed`); 0: all are loaded at startup.
        placement: run replicas only on nodes with the `required_resources` of the models.
        otlp: endpoint for spans, see `Tracer`; "" for none.
    """

    name: str = "tensorwright"
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 16.0
    max_ongoing_requests: int = 256
    cores: int = 1
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    drain_s: float = 30.0
    multiplexed: int = 0
    placement: bool = False
    otlp: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise OptionError(
                f"{self.min_replicas} to {self.max_replicas} replicas is no range",
                "min_replicas may be 0, max_replicas is 1 at least and no less than min_replicas",
            )
        if self.cores < 1 or self.max_ongoing_requests < 1 or not self.target_ongoing_requests > 0:
            raise OptionError("cores, max_ongoing_requests and target_ongoing_requests must be above 0")
        if self.multiplexed < 0 or min(self.upscale_delay_s, self.downscale_delay_s, self.drain_s) < 0:
            raise OptionError("multiplexed, upscale_delay_s, downscale_delay_s and drain_s must not be negative")


SHARE = 0.0001
"""Amount of a feature that a replica requests: the least that Ray counts, so that features do not limit replicas."""


def required_resources(models: Sequence[ModelOptions]) -> dict[str, float]:
    """Return the resources that a replica needs: the architectures and processor features of these models' modules.

    Reads the modules. Raises as reading a module.
    """
    names = {name for each in models for file in _modules(each) for name in _names_of(file)}
    return dict.fromkeys(sorted(names), SHARE)


def node_resources(models: Sequence[ModelOptions]) -> dict[str, float]:
    """Return the `required_resources` that this machine has, for `ray start --resources JSON`."""
    return {name: 1.0 for name in required_resources(models) if _has(name.removeprefix("cpu-"))}


def _has(name: str) -> bool:
    return name == cpuinfo.architecture() or cpuinfo.supports(name)


def _names_of(file: Path) -> Iterator[str]:
    target = read_artifact(file).manifest.target
    yield f"cpu-{cpuinfo.llvm_architecture(target.architecture)}"
    for feature in target.required_cpu_features:
        yield f"cpu-{cpuinfo.normalized(feature)}"


def _modules(model: ModelOptions) -> Iterator[Path]:
    """Return the module files of a model's newest version, of its variants, and of the services around it."""
    path, _ = versions_of(model.path)[0]
    if path.is_dir():
        yield from (path / each.file for each in read_variants(path).variants)
    else:
        yield path
    for path in _paths(model.layers):
        if path.suffix == ".twm":
            yield path
        elif (path / VARIANTS_FILE).exists():
            yield from (path / each.file for each in read_variants(path).variants)


def _paths(value: object) -> Iterator[Path]:
    """Return the paths in options."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _paths(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _paths(getattr(value, field.name))
