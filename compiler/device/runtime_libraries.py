"""The engine's runtime as shared libraries of any architecture: out of this environment, or out of PyPI's wheels."""

from __future__ import annotations

import importlib.metadata
import tempfile
import zipfile
from pathlib import Path

from compiler.device.cache import cached
from compiler.device.pip_download import pip_download
from compiler.device.runtime_sources import build_shared_libraries
from compiler.runtime.engine import runtime_library_path, tvm_ffi
from targets import Target

FFI_LIBRARY = "libtvm_ffi.so"
RUNTIME_LIBRARY = "libtvm_runtime.so"
# Architectures that PyPI has wheels for, with the platforms that their names carry.
_WHEEL_PLATFORMS = {
    "aarch64": tuple(f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 24, 17)),
    "x86_64": tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)),
}
_MEMBERS = {"apache-tvm": f"tvm/lib/{RUNTIME_LIBRARY}", "apache-tvm-ffi": f"tvm_ffi/lib/{FFI_LIBRARY}"}


def runtime_libraries(target: Target) -> tuple[Path, Path]:
    """Paths of (libtvm_ffi.so, libtvm_runtime.so) for the target's architecture.

    Raises:
        MissingDependencyError: they are not here and could not be downloaded.
        targets.TargetError: they have to be built and the toolchain is missing or failed.
    """
    if not target.is_cross:
        return Path(tvm_ffi.libinfo.find_libtvm_ffi()), runtime_library_path()
    if target.architecture in _WHEEL_PLATFORMS:
        folder = _from_wheels(target.architecture)
    else:
        folder = build_shared_libraries(target, FFI_LIBRARY, RUNTIME_LIBRARY)
    return folder / FFI_LIBRARY, folder / RUNTIME_LIBRARY


def _from_wheels(architecture: str) -> Path:
    versions = {name: importlib.metadata.version(name) for name in _MEMBERS}
    key = "-".join([architecture, *versions.values()])
    return cached("wheels", key, lambda folder: _download(architecture, versions, folder))


def _download(architecture: str, versions: dict[str, str], destination: Path) -> None:
    requirements = [f"{name}=={version}" for name, version in versions.items()]
    platforms = [part for name in _WHEEL_PLATFORMS[architecture] for part in ("--platform", name)]
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        options = ["--only-binary=:all:", *platforms, *requirements]
        what = f"the {architecture} wheels of TVM's runtime ({', '.join(requirements)})"
        pip_download(options, Path(folder), what)
        for name, member in _MEMBERS.items():
            (wheel,) = Path(folder).glob(f"{name.replace('-', '_')}-{versions[name]}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                path = destination / Path(member).name
                path.write_bytes(archive.read(member))
                path.chmod(0o755)
