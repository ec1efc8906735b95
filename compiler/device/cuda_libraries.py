"""Additional libraries of a bundle for NVIDIA GPUs: TVM's CUDA runtime and NVIDIA's libcudart.so, which may be
redistributed under its license (Attachment A)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from compiler.device.runtime_libraries import installed_version, libraries_from_wheels
from compiler.errors import MissingDependencyError
from compiler.runtime.device import CUDA_PART, CUDA_RUNTIME, CUDA_RUNTIME_DISTRIBUTION
from compiler.runtime.tvm_runtime import runtime_library_path
from targets import Target
from targets.cuda.target import CudaTarget
from targets.extras import install_command


def cuda_libraries(target: Target) -> tuple[Path, ...]:
    """Paths of libtvm_runtime_cuda.so and libcudart.so.13 for the architecture of a GPU target's host; empty for other
    targets. Raises MissingDependencyError if they are not installed, or could not be downloaded."""
    if not isinstance(target, CudaTarget):
        return ()
    _check_installed()
    if target.is_cross:
        members = {"apache-tvm": (f"tvm/lib/{CUDA_PART}",), CUDA_RUNTIME_DISTRIBUTION: (_runtime_member(),)}
        folder = libraries_from_wheels(target.architecture, members, "cuda-wheels")
        return folder / CUDA_PART, folder / CUDA_RUNTIME
    return runtime_library_path().with_name(CUDA_PART), _installed(_runtime_member())


def cuda_license() -> str:
    """The text of the license of NVIDIA's runtime. Raises MissingDependencyError."""
    _check_installed()
    for file in importlib.metadata.files(CUDA_RUNTIME_DISTRIBUTION) or ():
        if file.name.lower().startswith("license") and ".dist-info" in file.parts[0]:
            return Path(str(file.locate())).read_text(encoding="utf-8")
    raise MissingDependencyError(
        f"{CUDA_RUNTIME_DISTRIBUTION} is installed without its license", install_command("cuda")
    )


def _check_installed() -> None:
    try:
        installed_version(CUDA_RUNTIME_DISTRIBUTION)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"{error.message}: it holds {CUDA_RUNTIME}", install_command("cuda")) from error


def _runtime_member() -> str:
    for file in importlib.metadata.files(CUDA_RUNTIME_DISTRIBUTION) or ():
        if file.name == CUDA_RUNTIME:
            return file.as_posix()
    version = installed_version(CUDA_RUNTIME_DISTRIBUTION)
    raise MissingDependencyError(
        f"{CUDA_RUNTIME_DISTRIBUTION} {version} does not contain {CUDA_RUNTIME}", install_command("cuda")
    )


def _installed(member: str) -> Path:
    for file in importlib.metadata.files(CUDA_RUNTIME_DISTRIBUTION) or ():
        if file.as_posix() == member:
            return Path(str(file.locate()))
    raise MissingDependencyError(f"{CUDA_RUNTIME_DISTRIBUTION} does not contain {member}", install_command("cuda"))
