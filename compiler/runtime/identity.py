"""The identity of a module: a digest of everything that determines its outputs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from compiler.artifact.container import tree_digests

if TYPE_CHECKING:
    from compiler.runtime.module import Module


def module_identity(module: Module) -> str:
    """A digest (hex) of a module's code, parameters and inputs; equal for equal files.

    A module read from a file carries checksums of its sections; for a newly compiled one they are computed.
    """
    manifest = module.manifest
    digest = hashlib.sha256("; ".join(map(str, (*manifest.inputs, *manifest.outputs))).encode())
    if manifest.checksums:
        digest.update(repr(sorted(manifest.checksums.items())).encode())
    else:
        artifact = module.artifact
        arrays = [np.ascontiguousarray(array).reshape(-1) for array in artifact.parameters.values()]
        parameters = [array.view(np.uint8).data for array in arrays if array.size]
        for part in tree_digests([[memoryview(artifact.library)], parameters]):
            digest.update(part)
    return digest.hexdigest()
