"""The single-file module: machine code, parameters and manifest. Every byte is checked before any content is used.

Each name is loaded on first use, so that a file can be opened while NumPy is still being imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.artifact.artifact import (
        Artifact,
        Contents,
        artifact_bytes,
        read_artifact,
        sign,
        signatures_of,
        tool_versions,
        write_artifact,
    )
    from compiler.artifact.container import FORMAT_VERSION
    from compiler.artifact.keys import (
        Key,
        KeyKind,
        KeyPair,
        Signature,
        generate_keys,
        private_key_bytes,
        public_key_bytes,
        public_keys,
        write_new_keys,
    )
    from compiler.artifact.manifest import (
        FixedInput,
        KernelProvenance,
        Manifest,
        MemoryPlan,
        PassTiming,
        ReferenceTolerance,
        TargetDescription,
        TensorDescription,
        ToolVersions,
    )

_HOME = {
    "Artifact": "compiler.artifact.artifact",
    "Contents": "compiler.artifact.artifact",
    "FORMAT_VERSION": "compiler.artifact.container",
    "FixedInput": "compiler.artifact.manifest",
    "KernelProvenance": "compiler.artifact.manifest",
    "Key": "compiler.artifact.keys",
    "KeyKind": "compiler.artifact.keys",
    "KeyPair": "compiler.artifact.keys",
    "Manifest": "compiler.artifact.manifest",
    "MemoryPlan": "compiler.artifact.manifest",
    "PassTiming": "compiler.artifact.manifest",
    "ReferenceTolerance": "compiler.artifact.manifest",
    "Signature": "compiler.artifact.keys",
    "TargetDescription": "compiler.artifact.manifest",
    "TensorDescription": "compiler.artifact.manifest",
    "ToolVersions": "compiler.artifact.manifest",
    "artifact_bytes": "compiler.artifact.artifact",
    "generate_keys": "compiler.artifact.keys",
    "private_key_bytes": "compiler.artifact.keys",
    "public_key_bytes": "compiler.artifact.keys",
    "public_keys": "compiler.artifact.keys",
    "read_artifact": "compiler.artifact.artifact",
    "sign": "compiler.artifact.artifact",
    "signatures_of": "compiler.artifact.artifact",
    "tool_versions": "compiler.artifact.artifact",
    "write_artifact": "compiler.artifact.artifact",
    "write_new_keys": "compiler.artifact.keys",
}

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "Contents",
    "FixedInput",
    "KernelProvenance",
    "Key",
    "KeyKind",
    "KeyPair",
    "Manifest",
    "MemoryPlan",
    "PassTiming",
    "ReferenceTolerance",
    "Signature",
    "TargetDescription",
    "TensorDescription",
    "ToolVersions",
    "artifact_bytes",
    "generate_keys",
    "private_key_bytes",
    "public_key_bytes",
    "public_keys",
    "read_artifact",
    "sign",
    "signatures_of",
    "tool_versions",
    "write_artifact",
    "write_new_keys",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compiler.artifact' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value
