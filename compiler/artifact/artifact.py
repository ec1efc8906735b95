"""`Artifact`: a compiled module in memory, created by the driver or read from a file with all checks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np

from compiler.artifact.container import Layout, pack_header, parse_header, tree_digests
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.fields import FieldError, checked, decode, encode
from compiler.artifact.keys import Key, Signature, check_signatures, make_signature, pack_signatures, parse_signatures
from compiler.artifact.manifest import FixedInput, Manifest, TargetDescription, TensorDescription, ToolVersions
from compiler.artifact.opening import OpenedModule, Source, open_module
from compiler.artifact.storage import read_mapped, write_atomically
from compiler.artifact.tensors import Blob, read_blob
from compiler.errors import ArtifactError, InternalError

Arrays = dict[str, np.ndarray]
_MAX_INLINE_VALUES = 64


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Contents of a module in addition to its code.

    Attributes:
        parameters: numpy arrays in `main`'s order (bfloat16 and the like as `ml_dtypes`).
        reference_inputs, reference_outputs: the stored example.
        fixed: inputs of the model whose values were fixed at compile time.
        initial_states: initial values of states that do not start as zeros, by input name.
        assets: files that belong to the model and that `main` does not read, by name.
    """

    parameters: Mapping[str, np.ndarray]
    reference_inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    reference_outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    initial_states: Mapping[str, np.ndarray] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A compiled module: its manifest, machine code and tensors.

    Attributes:
        library: an ELF shared library containing a Relax VM executable whose `main(*inputs, *parameters)` returns a
            tuple.
        parameters: in the order in which `main` takes them after the inputs.
        reference_inputs, reference_outputs: an example and its outputs, by name; empty if there is none.
        initial_states: initial values of states, by input name; states without a value start as zeros.
        assets: files that belong to the model and that `main` does not read (a tokenizer), by name, as uint8 (bytes,).
    """

    manifest: Manifest
    library: bytes | memoryview
    parameters: Arrays
    reference_inputs: Arrays = field(default_factory=dict)
    reference_outputs: Arrays = field(default_factory=dict)
    initial_states: Arrays = field(default_factory=dict)
    assets: Arrays = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        *,
        model_name: str,
        inputs: Sequence[TensorDescription],
        outputs: Sequence[TensorDescription],
        target: TargetDescription,
        library: bytes,
        contents: Contents,
        **manifest_fields: Any,
    ) -> Artifact:
        """Create the manifest for the results of a compilation. Raises InternalError if an array's element type is not
        supported in modules. `manifest_fields`: other fields of `Manifest`: threads, kernels, passes, memory_plan,
        versions, reference_tolerance."""
        files = {name: np.frombuffer(content, np.uint8) for name, content in contents.assets.items()}
        manifest_fields.setdefault("versions", tool_versions())
        manifest = Manifest(
            model_name=model_name,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            target=target,
            parameters=_describe(contents.parameters),
            reference_inputs=_describe(contents.reference_inputs),
            reference_outputs=_describe(contents.reference_outputs),
            initial_states=_describe(contents.initial_states),
            fixed_inputs=tuple(_fixed(name, array) for name, array in contents.fixed.items()),
            assets=_describe(files),
            **manifest_fields,
        )
        return cls(
            checked(manifest),
            library,
            dict(contents.parameters),
            dict(contents.reference_inputs),
            dict(contents.reference_outputs),
            dict(contents.initial_states),
            files,
        )

    def with_reference(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        sizes: Mapping[str, int] | None = None,
    ) -> Artifact:
        """The same module with a different stored example; `sizes` is described at `Manifest.reference_sizes`.

        Raises InternalError like `create`.
        """
        described = {
            "reference_inputs": _describe(inputs),
            "reference_outputs": _describe(outputs),
            "reference_sizes": dict(sizes or {}),
        }
        manifest = msgspec.structs.replace(self.manifest, **described)
        return replace(self, manifest=checked(manifest), reference_inputs=dict(inputs), reference_outputs=dict(outputs))

    @property
    def parameter_bytes(self) -> int:
        """Total size of the parameters in bytes."""
        return sum(array.nbytes for array in self.parameters.values())


def tool_versions(**others: str) -> ToolVersions:
    """The versions of Tensorwright and TVM in this environment; `others` by name."""
    return ToolVersions(
        tensorwright=_installed("tensorwright"),
        tvm=_installed("apache-tvm"),
        tvm_ffi=_installed("apache-tvm-ffi"),
        others=others,
    )


@cache
def _installed(distribution: str) -> str:
    """The version of a distribution that this process has loaded; reading the version from the package's metadata takes
    milliseconds."""
    import importlib.metadata  # not needed for loading a module

    return importlib.metadata.version(distribution)


def _describe(arrays: Mapping[str, np.ndarray]) -> tuple[TensorDescription, ...]:
    for name, array in arrays.items():
        if str(array.dtype) not in ELEMENT_TYPES or array.dtype.byteorder == ">":
            raise InternalError(f"tensor {name!r} has element type {array.dtype}, which modules do not support")
    return tuple(TensorDescription.of(name, array) for name, array in arrays.items())


def _fixed(name: str, array: np.ndarray) -> FixedInput:
    # JSON cannot represent non-finite numbers.
    few = array.size <= _MAX_INLINE_VALUES and array.dtype.kind in "biuf" and bool(np.isfinite(array).all())
    (description,) = _describe({name: array})
    return FixedInput(tensor=description, values=tuple(array.reshape(-1).tolist()) if few else None)


_SECTIONS = ("library", "parameters", "reference_in", "reference_out")
_STATES = "states"  # an additional section if states start with values other than zeros
_ASSETS = "assets"  # the last section of modules that contain files
Pieces = list[memoryview | bytes]


def write_artifact(artifact: Artifact, path: str | os.PathLike[str], sign_key: Key | None = None) -> None:
    """Write a module as one file, completely or not at all; the module is signed if a private key is given.

    Raises:
        StorageError: the file cannot be written; no partial file is left.
        OptionError: `sign_key` is not an Ed25519 private key.
    """
    write_atomically(path, _pieces(artifact, sign_key))


def artifact_bytes(artifact: Artifact, sign_key: Key | None = None) -> bytes:
    """The bytes that `write_artifact` would write."""
    return b"".join(_pieces(artifact, sign_key))


def _pieces(artifact: Artifact, sign_key: Key | None) -> Pieces:
    arrays = [artifact.parameters, artifact.reference_inputs, artifact.reference_outputs]
    names = _section_names(artifact.manifest)
    blobs = [Blob(each) for each in [*arrays, *(more for more in (artifact.initial_states, artifact.assets) if more)]]
    contents: list[Sequence[memoryview | bytes]] = [[artifact.library], *(blob.pieces for blob in blobs)]
    digests = tree_digests(contents)
    checksums = {name: digest.hex() for name, digest in zip(names, digests, strict=True)}
    manifest = msgspec.structs.replace(artifact.manifest, checksums=checksums)
    sizes = dict(zip(names, [len(artifact.library), *(blob.nbytes for blob in blobs)], strict=True))
    head, layout = pack_header(encode(manifest), sizes, signed=sign_key is not None)
    pieces: Pieces = [head]
    position = len(head)
    for section, content in zip(layout.sections, contents, strict=True):
        pieces += [bytes(section.offset - position), *content]
        position = section.offset + section.size
    signatures = [make_signature(layout.digest, sign_key)] if sign_key is not None else []
    return [*pieces, pack_signatures(signatures)]


def read_artifact(source: Source, trusted_keys: Sequence[Key] | None = None) -> Artifact:
    """Read a module and check every byte before any content is used.

    Args:
        source: a path, or the bytes of such a file. A file is mapped, not copied, unless `trusted_keys` is given: then
            it is read into private memory so that it cannot change after its signature has been checked.
        trusted_keys: Ed25519 public keys, as raw bytes (32 bytes) or paths of PEM files or of folders of PEM files; a
            valid signature by one of them is required.

    Raises:
        StorageError: the file cannot be read.
        ArtifactError: the file is not a module, or is truncated or damaged.
        IncompatibleArtifactError: it has a newer format version.
        SignatureError: a signature is required, but is missing, invalid or by another key.
    """
    return read_opened(open_module(source, private=trusted_keys is not None), trusted_keys)


def read_opened(opened: OpenedModule, trusted_keys: Sequence[Key] | None = None) -> Artifact:
    """Like `read_artifact`, for a module that is already open; with `trusted_keys`, it must have been opened as
    private."""
    try:
        return _read(opened, trusted_keys)
    except BaseException:
        if opened.digests is not None:
            opened.digests.stop()
        raise


def _read(opened: OpenedModule, trusted_keys: Sequence[Key] | None) -> Artifact:
    layout, origin = opened.layout, opened.origin
    signatures = parse_signatures(opened.data[layout.content_bytes :], origin)
    if trusted_keys is not None:
        check_signatures(signatures, layout.digest, trusted_keys, origin)
    manifest = _parse_manifest(layout, origin)
    sections = _checked_sections(opened, manifest)
    parameters, inputs, outputs, states, assets = (
        read_blob(sections[name], expected, what) if name in sections else {}
        for name, expected, what in (
            ("parameters", manifest.parameters, "parameters"),
            ("reference_in", manifest.reference_inputs, "reference inputs"),
            ("reference_out", manifest.reference_outputs, "reference outputs"),
            (_STATES, manifest.initial_states, "states"),
            (_ASSETS, manifest.assets, "assets"),
        )
    )
    return Artifact(manifest, sections["library"], parameters, inputs, outputs, states, assets)


def _section_names(manifest: Manifest) -> tuple[str, ...]:
    further = ((_STATES, manifest.initial_states), (_ASSETS, manifest.assets))
    return (*_SECTIONS, *(name for name, tensors in further if tensors))


def _parse_manifest(layout: Layout, origin: str) -> Manifest:
    try:
        return decode(layout.manifest, Manifest)
    except FieldError as error:
        raise ArtifactError(f"{origin}: its manifest is not valid: {str(error)[:700]}") from error


def _checked_sections(opened: OpenedModule, manifest: Manifest) -> dict[str, memoryview]:
    """The sections by name, each with the checksum from the manifest, verified now or when the file was checked
    earlier."""
    names, expected = tuple(section.name for section in opened.layout.sections), _section_names(manifest)
    if names != expected or set(manifest.checksums) != set(expected):
        raise ArtifactError(f"{opened.origin} is damaged: it must have the sections {', '.join(expected)}")
    found = () if opened.digests is None else zip(names, opened.digests.result(), strict=True)
    for name, digest in found:
        if digest.hex() != manifest.checksums[name]:
            raise ArtifactError(
                f"{opened.origin} is damaged: the checksum of its {name} does not match",
                "copy or export the file again",
            )
    if opened.file is not None:
        opened.file.remember()
    return {name: opened.section(index) for index, name in enumerate(names)}


def signatures_of(path: str | os.PathLike[str]) -> tuple[Signature, ...]:
    """The signatures in a file, unchecked: who claims to have signed it."""
    data = read_mapped(path)
    return parse_signatures(data[parse_header(data, str(path)).content_bytes :], str(path))


def sign(path: str | os.PathLike[str], private_key: Key) -> None:
    """Add a signature to a module file (replacing an existing one by the same key); the file is replaced atomically.

    Raises:
        ArtifactError: the file is damaged; only checked content is signed.
        StorageError: it cannot be read or written.
        OptionError: the key is not an Ed25519 private key.
    """
    read_artifact(path)
    data = read_mapped(path)
    old = parse_header(data, str(path))
    # The head states whether the file is signed, so the first signature changes it; additional signatures do not.
    head, layout = pack_header(old.manifest, {s.name: s.size for s in old.sections}, signed=True)
    added = make_signature(layout.digest, private_key)
    kept = [s for s in parse_signatures(data[old.content_bytes :], str(path)) if s.public_key != added.public_key]
    write_atomically(path, [head, data[len(head) : old.content_bytes], pack_signatures([*kept, added])])
