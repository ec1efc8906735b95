"""The one-file module: machine code, parameters and manifest, every byte checked before anything of it is used."""

from compiler.artifact.artifact import Artifact, Contents, tool_versions
from compiler.artifact.format import artifact_bytes, read_artifact, sign, signatures_of, write_artifact
from compiler.artifact.keys import (
    Key,
    KeyKind,
    KeyPair,
    generate_keys,
    private_key_bytes,
    public_key_bytes,
    public_keys,
    write_new_keys,
)
from compiler.artifact.manifest import (
    FORMAT_VERSION,
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
from compiler.artifact.signature import Signature

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
