"""TVM's runtime libraries for any architecture: from this environment, or from wheels on PyPI.

Also downloads distributions from PyPI with pip.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from compiler.device.runtime_sources import build_shared_libraries
from compiler.errors import MissingDependencyError
from compiler.runtime.tvm_runtime import runtime_library_path, tvm_ffi
from compiler.support.cache import FOLDER_VARIABLE, cache_folder, cached
from targets import Target

FFI_LIBRARY = "libtvm_ffi.so"
RUNTIME_LIBRARY = "libtvm_runtime.so"
# Architectures with wheels on PyPI, and their platform tags.
_WHEEL_PLATFORMS = {
    "aarch64": tuple(f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 24, 17)),
    "x86_64": tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)),
}
_MEMBERS = {"apache-tvm": (f"tvm/lib/{RUNTIME_LIBRARY}",), "apache-tvm-ffi": (f"tvm_ffi/lib/{FFI_LIBRARY}",)}


def runtime_libraries(target: Target) -> tuple[Path, Path]:
    """Paths of (libtvm_ffi.so, libtvm_runtime.so) for the target's architecture.

    Raises:
        MissingDependencyError: they are not installed and could not be downloaded.
        targets.TargetError: they must be built from source, and the toolchain is missing or failed.
    """
    if not target.is_cross:
        return Path(tvm_ffi.libinfo.find_libtvm_ffi()), runtime_library_path()
    if target.architecture in _WHEEL_PLATFORMS:
        folder = libraries_from_wheels(target.architecture, _MEMBERS)
    else:
        folder = build_shared_libraries(target, FFI_LIBRARY, RUNTIME_LIBRARY)
    return folder / FFI_LIBRARY, folder / RUNTIME_LIBRARY


def libraries_from_wheels(architecture: str, members: Mapping[str, Sequence[str]], kind: str = "wheels") -> Path:
    """A cached folder with files from PyPI's wheels, in the versions installed here. Raises MissingDependencyError if a
    distribution is not installed, or could not be downloaded.

    Args:
        members: paths in the wheel, by distribution.
        kind: prefix of the cache folder's name.
    """
    versions = {name: installed_version(name) for name in members}
    key = "-".join([architecture, *versions.values()])
    return cached(kind, key, lambda folder: _download(architecture, versions, members, folder))


def installed_version(distribution: str) -> str:
    """The version of a distribution. Raises MissingDependencyError."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(f"{distribution} is not installed", f"pip install {distribution}") from error


def _download(
    architecture: str, versions: Mapping[str, str], members: Mapping[str, Sequence[str]], destination: Path
) -> None:
    requirements = [f"{name}=={version}" for name, version in versions.items()]
    platforms = [part for name in _WHEEL_PLATFORMS[architecture] for part in ("--platform", name)]
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        options = ["--only-binary=:all:", *platforms, *requirements]
        pip_download(options, Path(folder), f"the {architecture} wheels of {', '.join(requirements)}")
        for name, paths in members.items():
            (wheel,) = Path(folder).glob(f"{name.replace('-', '_')}-{versions[name]}-*.whl")
            _extract(wheel, paths, destination)


def _extract(wheel: Path, members: Sequence[str], destination: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            path = destination / Path(member).name
            try:
                path.write_bytes(archive.read(member))
            except KeyError as error:
                raise MissingDependencyError(
                    f"{wheel.name} has no {member}", "this version does not support such a device; use another target"
                ) from error
            path.chmod(0o755)


_TIMEOUT_SECONDS = 900


def pip_download(options: Sequence[str], folder: Path, what: str) -> None:
    """Download distributions, without their dependencies, into a folder. Raises MissingDependencyError if they could
    not be downloaded.

    Args:
        options: the arguments of `pip download` that select them.
        folder: the destination.
        what: a description for the error message.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        problem = done.stderr.strip()[-500:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is not None:
        raise MissingDependencyError(
            f"{what} could not be downloaded: {problem}",
            f"access to PyPI is needed once; downloads are cached in {cache_folder()} ({FOLDER_VARIABLE})",
        )


def download_source(distribution: str, version: str, sha256: str, folder: Path, what: str) -> Path:
    """Download the source distribution with this digest into a folder, for the code of `what` in it. Raises
    MissingDependencyError if it could not be downloaded."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{distribution}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    options = ["--no-binary", distribution, "--require-hashes", "--requirement", str(requirements)]
    pip_download(options, folder, f"the source of {what} (in {distribution} {version})")
    (archive,) = folder.glob("*.tar.gz")
    return archive
