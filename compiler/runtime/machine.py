"""Checks whether this machine can run a module, before any of its code is loaded."""

from __future__ import annotations

from compiler.artifact.manifest import Manifest
from compiler.errors import IncompatibleArtifactError
from compiler.runtime.tvm_runtime import runtime_version
from targets import cpuinfo


def check_machine(manifest: Manifest) -> None:
    """Raise IncompatibleArtifactError, naming what is missing, unless this machine and its TVM can run the module."""
    target = manifest.target
    if cpuinfo.llvm_architecture(target.architecture) != cpuinfo.architecture():
        raise IncompatibleArtifactError(
            f"the module was compiled for {target.architecture} (target {target.name!r}), "
            f"and this machine is {cpuinfo.architecture()}",
            "compile the model for this machine's target",
        )
    missing = [feature for feature in target.required_cpu_features if not cpuinfo.supports(feature)]
    if missing:
        raise IncompatibleArtifactError(
            f"the module needs processor features that this machine lacks: {', '.join(missing)} "
            f"(it was compiled for target {target.name!r})",
            "compile the model for this machine's target, or for a more general one",
        )
    if runtime_version() not in (None, manifest.versions.tvm):
        raise IncompatibleArtifactError(
            f"the module was compiled with TVM {manifest.versions.tvm}, and this machine has TVM {runtime_version()}",
            f"install apache-tvm=={manifest.versions.tvm}, or compile the model again",
        )
