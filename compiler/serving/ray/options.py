"""`RayOptions`: how many replicas Ray runs, where, and with which models.

Resources stand for what a processor has, so that modules run where their machine code can. A node declares a resource
for each feature (`node_resources`), and a replica asks for a small share of those that its modules require
(`required_resources`): a module that uses VNNI gets to nodes that have VNNI.
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
        min_replicas, max_replicas: how many run; they differ where Ray scales by load.
        target_ongoing_requests: requests at once per replica that Ray scales for.
        max_ongoing_requests: requests at once that a replica is sent; further ones wait in Ray's proxies.
        cores: number of cores of a replica: what Ray reserves for it (`num_cpus`), and what its models use.
        upscale_delay_s, downscale_delay_s: how long the load must call for it before replicas are added or removed.
        drain_s: for requests to end when a replica stops.
        multiplexed: models that a replica keeps loaded, each loaded when it is first asked for, the least recently
            used one unloaded for it (`serve.multiplexed`); 0: all are loaded at startup.
        placement: run replicas only on nodes with the resources that `required_resources` gives for the models.
        otlp: where spans are sent, as of `Tracer`; "": nowhere.
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
"""Amount of a feature that a replica requests: the least that Ray counts, so that features limit no replicas."""


def required_resources(models: Sequence[ModelOptions]) -> dict[str, float]:
    """The resources that a replica needs: the architectures and processor features of all modules of these models.

    Reads the modules here. Raises what reading a module does.
    """
    names = {name for each in models for file in _modules(each) for name in _names_of(file)}
    return dict.fromkeys(sorted(names), SHARE)


def node_resources(models: Sequence[ModelOptions]) -> dict[str, float]:
    """The `required_resources` that this machine has, as it declares them: `ray start --resources JSON`."""
    return {name: 1.0 for name in required_resources(models) if _has(name.removeprefix("cpu-"))}


def _has(name: str) -> bool:
    return name == cpuinfo.architecture() or cpuinfo.supports(name)


def _names_of(file: Path) -> Iterator[str]:
    target = read_artifact(file).manifest.target
    yield f"cpu-{cpuinfo.llvm_architecture(target.architecture)}"
    for feature in target.required_cpu_features:
        yield f"cpu-{cpuinfo.normalized(feature)}"


def _modules(model: ModelOptions) -> Iterator[Path]:
    """The module files of a model's newest version, of its variants, and of the services around it."""
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
    """The paths in options."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _paths(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _paths(getattr(value, field.name))
