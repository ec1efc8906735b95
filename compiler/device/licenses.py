"""The licenses of a bundle's third-party and own code: Tensorwright, TVM and its FFI, libsodium."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from compiler.device.sodium import LICENSE, sodium_source
from compiler.errors import MissingDependencyError

_DISTRIBUTIONS = ("tensorwright", "apache-tvm", "apache-tvm-ffi")
_NAMES = ("LICENSE", "NOTICE")
# Third parties of these whose code their libraries have: conversions of half-precision numbers, traces of errors.
_FURTHER = {
    "apache-tvm": ("tvm/licenses/LICENSE.builtin_fp16.txt",),
    "apache-tvm-ffi": ("tvm_ffi/3rdparty/libbacktrace/LICENSE",),
}
_SOURCE_TREE = Path(__file__).resolve().parents[2]


def licenses() -> Mapping[str, str]:
    """Texts by "project/file name".

    Raises:
        MissingDependencyError: a distribution is installed without its license, or libsodium's source is not available.
    """
    texts: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        texts.update({f"{name}/{file}": _read(path) for file, path in _files(name).items()})
        if f"{name}/LICENSE" not in texts:
            raise MissingDependencyError(f"{name} is installed without its license", f"pip install --force {name}")
    texts["libsodium/LICENSE"] = _read(sodium_source() / LICENSE)
    return texts


def licenses_text() -> str:
    """All of them as one text. Raises: as `licenses`."""
    return "\n".join(f"{'=' * 20} {name}\n\n{text.strip()}\n" for name, text in licenses().items())


def _files(distribution: str) -> dict[str, Path]:
    """Files of a distribution by the name that a bundle gives them."""
    found: dict[str, Path] = {}
    for file in importlib.metadata.files(distribution) or ():
        path = Path(str(file.locate()))
        own = file.name in _NAMES and file.parent.parent.suffix == ".dist-info"
        if (own or file.as_posix() in _FURTHER.get(distribution, ())) and path.is_file():
            found[file.name if own else file.as_posix().partition("/")[2].removeprefix("licenses/")] = path
    if distribution == "apache-tvm" and "NOTICE" not in found:
        found["NOTICE"] = _beside_package("tvm", "NOTICE")
    if distribution == "tensorwright" and "LICENSE" not in found:
        found["LICENSE"] = _SOURCE_TREE / "LICENSE"  # not installed, but run from a source tree
    return {name: path for name, path in found.items() if path.is_file()}


def _beside_package(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
