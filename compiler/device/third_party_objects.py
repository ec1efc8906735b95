"""The C libraries that every program on a device links: libsodium and Wuffs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.device import sodium, wuffs
from targets import Target


def third_party_objects(target: Target, options: Sequence[str] = ()) -> list[Path]:
    """Their object files for the target.

    Args:
        options: more options to compile Wuffs with, as those of sanitizers.

    Raises:
        MissingDependencyError: the source of one is not cached and could not be downloaded.
        targets.TargetError: no compiler for the target, or it failed.
    """
    return [sodium.sodium_object(target), wuffs.wuffs_object(target, options)]


def third_party_includes() -> list[Path]:
    """The folders of their headers. Raises MissingDependencyError."""
    return [sodium.sodium_source() / "include", wuffs.wuffs_source()]


def third_party_licenses() -> dict[str, Path]:
    """Their licenses, by "project/file name". Raises MissingDependencyError."""
    return {
        "libsodium/LICENSE": sodium.sodium_source() / sodium.LICENSE,
        "Wuffs/LICENSE": wuffs.wuffs_source() / wuffs.LICENSE,
    }
