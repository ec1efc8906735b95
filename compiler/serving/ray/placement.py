"""Resources of Ray that stand for what a processor has, so that modules run where their machine code can.

A node declares a resource for each feature (`node_resources`), and a replica asks for a small share of those that its
modules require (`required_resources`): a module that uses VNNI gets to nodes that have VNNI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from compiler.artifact import read_artifact
from compiler.artifact.variants import VARIANTS_FILE, read_variants
from compiler.serving.configuration import ModelOptions
from compiler.serving.repository import versions_of
from targets import cpuinfo

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
