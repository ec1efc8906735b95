"""`load` reads a module from a file: it checks the file while it imports the code that runs modules."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compiler.artifact.opening import open_module

if TYPE_CHECKING:
    from compiler.artifact import Key
    from compiler.runtime.module import Module


def load(
    source: str | os.PathLike[str] | bytes,
    *,
    threads: int | None = None,
    trusted_keys: Sequence[Key] | None = None,
    verify: bool = False,
) -> Module:
    """Load a module; the whole file is verified before any of it is used.

    A file of 256 MB or more that the user loaded before on this machine, and that has not changed since, is not read
    completely again (see `compiler.artifact.opening`), unless TENSORWRIGHT_CHECK_ALWAYS=1 or `trusted_keys` requires
    it.

    Args:
        source: the path of a `.twm` file, or its bytes.
        threads: number of threads per run; None: the module's own setting.
        trusted_keys: Ed25519 public keys (32 raw bytes, or paths of PEM files or folders): a valid signature by one is
            required, and the file is read into private memory. Otherwise the file is mapped, and must not be changed
            in place while the module is in use.
        verify: also run the stored reference input and compare (`Module.verify`).

    Raises:
        StorageError, ArtifactError, IncompatibleArtifactError, SignatureError: as in `read_artifact` and `Module`.
        VerificationError: `verify` was asked for, and an output differs or there is no reference.
    """
    opened = open_module(source, private=trusted_keys is not None)
    # These imports take as long as the digests of a model of some 100 MB.
    from compiler.artifact.artifact import read_opened
    from compiler.runtime.module import Module

    module = Module(read_opened(opened, trusted_keys), threads=threads)
    if verify:
        module.verify()
    return module
