"""The image decoders of Wuffs for programs on devices, compiled from the one C file that pywuffs' source distribution
carries (Apache License 2.0 or MIT License).

Wuffs is a language in which code that reads past its buffers, or overflows, does not compile; its JPEG decoder computes
what libjpeg-turbo does, which Pillow reads with.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compiler.device.runtime_libraries import download_source
from compiler.support.cache import cached, key_of
from targets import Target

OBJECT = "wuffs.o"
LICENSE = "LICENSE"
_HEADER = "wuffs.h"  # the name under which the file is included; it is the implementation too
_DISTRIBUTION, _VERSION = "pywuffs", "2.0.1"
_SHA256 = "5a9fd8a5026badf9e133940cee87ad58bd5cb4cd5264b9c46b607cb34e2bb9ab"
_MEMBER = "/libs/wuffs/release/c/wuffs-unsupported-snapshot.c"
_MODULES = ("ADLER32", "BASE", "BMP", "CRC32", "DEFLATE", "GIF", "JPEG", "PNG", "ZLIB")
_OPTIONS = (
    "-x",
    "c",
    "-w",
    "-Os",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-DWUFFS_IMPLEMENTATION",
    "-DWUFFS_CONFIG__MODULES",
    *(f"-DWUFFS_CONFIG__MODULE__{module}" for module in _MODULES),
)


def wuffs_source() -> Path:
    """A folder with the C file, under its name as a header, and its license.

    Raises:
        MissingDependencyError: the source is not cached and could not be downloaded.
    """
    return cached("wuffs-source", f"{_DISTRIBUTION}-{_VERSION}-{_SHA256[:8]}", _download)


def wuffs_object(target: Target, options: Sequence[str] = ()) -> Path:
    """The decoders as one object file for the target; compiled once, which takes about 5 s of processor time.

    Args:
        options: more options of the compiler.

    Raises:
        MissingDependencyError: as `wuffs_source`.
        targets.TargetError: no compiler for the target, or it failed.
    """
    source, compiler, options = wuffs_source(), target.compiler(), [*_OPTIONS, *options]
    key = key_of([target.architecture, source.name, compiler.version(), *options])

    def build(folder: Path) -> None:
        compiler.run([*options, "-c", source / _HEADER, "-o", folder / OBJECT])

    return cached("wuffs", f"{target.architecture}-{key}", build) / OBJECT


def _download(destination: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as name:
        archive = download_source(_DISTRIBUTION, _VERSION, _SHA256, Path(name), "Wuffs")
        with tarfile.open(archive) as packed:
            content = packed.extractfile(f"{_DISTRIBUTION}-{_VERSION}{_MEMBER}")
            assert content is not None
            text = content.read()
    (destination / _HEADER).write_bytes(text)
    notice = text[text.index(b"// Copyright") : text.index(b"#include <")].decode()
    notice = "\n".join(line.removeprefix("//").strip() for line in notice.splitlines())
    whole = "The text of the Apache License is that of Tensorwright: tensorwright/LICENSE."
    (destination / LICENSE).write_text(f"{notice.strip()}\n\n{whole}\n", encoding="utf-8")
