"""Registers the functions that a module's target provides beyond those of TVM."""

from __future__ import annotations

from typing import Any

from compiler.artifact.manifest import Manifest
from compiler.errors import IncompatibleArtifactError

_known: set[str] = set()


def load_accelerator(manifest: Manifest) -> None:
    """Load the driver or simulator of the target's accelerator if the module uses one.

    Raises:
        IncompatibleArtifactError: the target is not installed here.
    """
    name = manifest.target.name
    partition = manifest.target.details.get("partition")
    if name in _known or not isinstance(partition, dict) or not partition.get("claimed"):
        return
    import targets

    try:
        target = targets.get(name)
    except targets.TargetError as error:
        raise IncompatibleArtifactError(
            f"the module calls functions of its target {name!r}, which is not installed here: {error.message}",
            "install the package that offers the target",
        ) from error
    load_runtime_of(target)


def load_runtime_of(target: Any) -> None:
    """Load the accelerator of a given target, registered or not."""
    if target.name not in _known:
        target.load_runtime()
        _known.add(target.name)
