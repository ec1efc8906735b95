"""The C libraries linked into every device program, compiled from source distributions on PyPI.

libsodium (ISC License) is in PyNaCl. It is compiled without assembly and processor-specific intrinsics: the reference
implementations run on every architecture, and a device checks and encrypts little data.

Wuffs' image decoders (Apache License 2.0 or MIT License) are one C file in pywuffs. Wuffs is a language in which code
that reads past its buffers, or overflows, does not compile; its JPEG decoder has the same results as libjpeg-turbo,
which Pillow uses.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from compiler.device.runtime_libraries import download_source
from compiler.device.runtime_sources import EXTRA_OPTIONS
from compiler.support.cache import cached, key_of
from targets import Target

_OPTIONS = ("-w", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
_SODIUM_OPTIONS = (
    "-O2",
    "-D_GNU_SOURCE",
    "-DCONFIGURED=1",
    "-DSODIUM_STATIC=1",
    "-DNATIVE_LITTLE_ENDIAN=1",  # like all architectures of the targets
    "-DHAVE_SYS_RANDOM_H=1",  # getrandom(2), so that it needs no /dev/urandom
    "-DHAVE_PTHREAD=1",
    "-DTLS=_Thread_local",
)
# Those that device programs call, and those of which sodium_init() chooses an implementation.
_SODIUM_FOLDERS = (
    *("crypto_aead/aegis128l", "crypto_aead/aegis256", "crypto_aead/chacha20poly1305", "crypto_auth/hmacsha256"),
    *("crypto_core/ed25519", "crypto_core/salsa", "crypto_core/softaes", "crypto_generichash", "crypto_hash"),
    *("crypto_onetimeauth/poly1305", "crypto_pwhash/argon2", "crypto_scalarmult/curve25519", "crypto_sign"),
    *("crypto_stream/chacha20", "crypto_stream/salsa20", "crypto_verify", "randombytes", "sodium"),
)
_WUFFS_HEADER = "wuffs.h"  # the name by which the file is included; it is also the implementation
_WUFFS_MODULES = ("ADLER32", "BASE", "BMP", "CRC32", "DEFLATE", "GIF", "JPEG", "PNG", "ZLIB")
_WUFFS_OPTIONS = (
    "-Os",
    "-DWUFFS_IMPLEMENTATION",
    "-DWUFFS_CONFIG__MODULES",
    *(f"-DWUFFS_CONFIG__MODULE__{module}" for module in _WUFFS_MODULES),
)


def third_party_objects(target: Target, options: Sequence[str] = ()) -> list[Path]:
    """An object file of each library for the target; compiled once, which takes about 5 s of processor time each.

    Args:
        options: additional options for compiling Wuffs, like those of sanitizers.

    Raises:
        MissingDependencyError: the source of one is not cached and could not be downloaded.
        targets.TargetError: no compiler for the target, or it failed.
    """
    sodium, wuffs = _sodium_source(), _wuffs_source()
    files = sorted(path for folder in _SODIUM_FOLDERS for path in (sodium / folder).rglob("*.c"))
    includes = [f"-I{sodium / 'include' / 'sodium'}", f"-I{sodium / 'include'}"]
    return [
        _object("libsodium", sodium, files, target, _SODIUM_OPTIONS, includes),
        _object("wuffs", wuffs, [wuffs / _WUFFS_HEADER], target, (*_WUFFS_OPTIONS, *options)),
    ]


def third_party_includes() -> list[Path]:
    """The folders of their headers. Raises MissingDependencyError."""
    return [_sodium_source() / "include", _wuffs_source()]


def third_party_licenses() -> dict[str, Path]:
    """Their licenses, by "project/file name". Raises MissingDependencyError."""
    return {"libsodium/LICENSE": _sodium_source() / "LICENSE", "Wuffs/LICENSE": _wuffs_source() / "LICENSE"}


def _object(
    name: str, source: Path, files: Sequence[Path], target: Target, options: Sequence[str], includes: Sequence[str] = ()
) -> Path:
    compiler, options = target.compiler(), [*_OPTIONS, *options, *EXTRA_OPTIONS]
    names = [str(path.relative_to(source)) for path in files]
    key = key_of([target.architecture, source.name, compiler.version(), *names, *options])

    def build(folder: Path) -> None:
        sources = [part for path in files for part in ("-x", "c", path)]  # g++ forgets the language after a file
        compiler.run([*options, *includes, *sources, "-r", "-nostdlib", "-o", folder / f"{name}.o"])

    return cached(name, f"{target.architecture}-{key}", build) / f"{name}.o"


def _sodium_source() -> Path:
    """A folder with libsodium's C files, headers (`include`) and license."""
    sha256 = "018494d6d696ae03c7e656e5e74cdfd8ea1326962cc401bcf018f1ed8436811c"
    return _source("libsodium", "PyNaCl", "1.6.2", sha256, _unpack_sodium)


def _wuffs_source() -> Path:
    """A folder with Wuffs' C file, under its name as a header, and its license."""
    sha256 = "5a9fd8a5026badf9e133940cee87ad58bd5cb4cd5264b9c46b607cb34e2bb9ab"
    return _source("wuffs", "pywuffs", "2.0.1", sha256, _unpack_wuffs)


def _source(
    name: str, distribution: str, version: str, sha256: str, unpack: Callable[[tarfile.TarFile, Path, Path], None]
) -> Path:
    def make(destination: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            archive = download_source(distribution, version, sha256, Path(folder), name)
            with tarfile.open(archive) as packed:
                unpack(packed, Path(folder) / "tree", destination)

    return cached(f"{name}-source", f"{distribution}-{version}-{sha256[:8]}", make)


def _unpack_sodium(packed: tarfile.TarFile, tree: Path, destination: Path) -> None:
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
    shutil.copy(tree / "LICENSE", destination)


def _unpack_wuffs(packed: tarfile.TarFile, tree: Path, destination: Path) -> None:
    member = next(each for each in packed if each.name.endswith("/release/c/wuffs-unsupported-snapshot.c"))
    content = packed.extractfile(member)
    assert content is not None
    text = content.read()
    (destination / _WUFFS_HEADER).write_bytes(text)
    notice = text[text.index(b"// Copyright") : text.index(b"#include <")].decode()
    notice = "\n".join(line.removeprefix("//").strip() for line in notice.splitlines())
    whole = "The text of the Apache License is that of Tensorwright: tensorwright/LICENSE."
    (destination / "LICENSE").write_text(f"{notice.strip()}\n\n{whole}\n", encoding="utf-8")
