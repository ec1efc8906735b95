"""libsodium for programs on devices, compiled from the source that PyNaCl's source distribution carries (ISC License).

All of its C files, without the assembly and the intrinsics of single processors: the reference implementations run on
every architecture, and what a device checks and encrypts is small.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiler.device.runtime_libraries import download_source
from compiler.support.cache import cached, key_of
from targets import Target

OBJECT = "sodium.o"
LICENSE = "LICENSE"
_DISTRIBUTION, _VERSION = "PyNaCl", "1.6.2"
_SHA256 = "018494d6d696ae03c7e656e5e74cdfd8ea1326962cc401bcf018f1ed8436811c"
_OPTIONS = (
    "-x",
    "c",
    "-w",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-D_GNU_SOURCE",
    "-DCONFIGURED=1",
    "-DSODIUM_STATIC=1",
    "-DNATIVE_LITTLE_ENDIAN=1",  # as all architectures that there are targets for
    "-DHAVE_SYS_RANDOM_H=1",  # getrandom(2), so that it needs no /dev/urandom
    "-DHAVE_PTHREAD=1",
    "-DTLS=_Thread_local",
)


def sodium_source() -> Path:
    """A folder with libsodium's C files, headers (`include`) and license.

    Raises:
        MissingDependencyError: the source is not cached and could not be downloaded.
    """
    return cached("libsodium-source", f"{_DISTRIBUTION}-{_VERSION}-{_SHA256[:8]}", _download)


def sodium_object(target: Target) -> Path:
    """libsodium as one object file for the target; compiled once, which takes about 5 s of processor time.

    Raises:
        MissingDependencyError: as `sodium_source`.
        targets.TargetError: no compiler for the target, or it failed.
    """
    source, compiler = sodium_source(), target.compiler()
    key = key_of([target.architecture, source.name, compiler.version(), *_OPTIONS])

    def build(folder: Path) -> None:
        includes = [f"-I{source / 'include' / 'sodium'}", f"-I{source / 'include'}"]

        def one(path: Path) -> Path:
            made = folder / ("-".join(path.relative_to(source).with_suffix(".o").parts))
            compiler.run([*_OPTIONS, *includes, "-c", path, "-o", made])
            return made

        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(one, sorted(source.rglob("*.c"))))
        compiler.run(["-r", "-nostdlib", *parts, "-o", folder / OBJECT])
        for part in parts:
            part.unlink()

    return cached("libsodium", f"{target.architecture}-{key}", build) / OBJECT


def _download(destination: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as name:
        folder = Path(name)
        archive = download_source(_DISTRIBUTION, _VERSION, _SHA256, folder, "libsodium")
        _unpack(archive, folder / "tree", destination)


def _unpack(archive: Path, tree: Path, destination: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in packed:
            _, inside, name = member.name.partition("/src/libsodium/")
            content = packed.extractfile(member) if inside and member.isfile() else None
            if content is not None:
                path = tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    shutil.copytree(tree / "src" / "libsodium", destination, dirs_exist_ok=True)
    # The header that ./configure would generate.
    shutil.copy(tree / "builds" / "msvc" / "version.h", destination / "include" / "sodium")
    shutil.copy(tree / "LICENSE", destination / LICENSE)
