"""Artifacts survive serialization, and damaged ones are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors

from compiler.artifact import Artifact, artifact_bytes, read_artifact, write_artifact
from compiler.artifact.container import FORMAT_VERSION, HEAD_BYTES, MAGIC, pack_header, parse_header
from compiler.artifact.fields import decode, encode
from compiler.artifact.manifest import Manifest
from compiler.artifact.tensors import PADDING
from compiler.errors import ArtifactError, IncompatibleArtifactError, StorageError
from tests.compiler.artifact.samples import PARAMETERS, sample_artifact


@pytest.fixture(scope="module")
def content() -> bytes:
    return artifact_bytes(sample_artifact())


def _assert_equal(left: Artifact, right: Artifact) -> None:
    assert msgspec.structs.replace(left.manifest, checksums={}) == msgspec.structs.replace(right.manifest, checksums={})
    assert bytes(left.library) == bytes(right.library)
    for one, other in (
        (left.parameters, right.parameters),
        (left.reference_inputs, right.reference_inputs),
        (left.reference_outputs, right.reference_outputs),
        (left.assets, right.assets),
    ):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.twm"
    write_artifact(sample_artifact(), path)
    _assert_equal(sample_artifact(), read_artifact(path))
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_give_back_what_was_written(content: bytes) -> None:
    _assert_equal(sample_artifact(), read_artifact(content))


def test_writing_is_deterministic(content: bytes) -> None:
    assert artifact_bytes(sample_artifact()) == content


def test_parameters_of_a_file_are_aligned_and_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.twm"
    write_artifact(sample_artifact(), path)
    for array in read_artifact(path).parameters.values():
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_the_parameters_are_valid_safetensors(content: bytes) -> None:
    layout = parse_header(memoryview(content), "it")
    section = next(section for section in layout.sections if section.name == "parameters")
    data = content[section.offset : section.offset + section.size]
    loaded = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert {name for name in loaded if not name.startswith(PADDING)} == set(PARAMETERS)
    for name, array in PARAMETERS.items():
        assert tuple(loaded[name]["shape"]) == array.shape
        assert bytes(loaded[name]["data"]) == array.tobytes()
    assert loaded["brain"]["dtype"] == "BF16"


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_anywhere_is_refused(content: bytes, bit: int) -> None:
    damaged = bytearray(content)
    # Every byte, each bit of it in one of the eight runs.
    for position in range(len(content)):
        damaged[position] ^= 1 << ((bit + position) % 8)
        with pytest.raises(ArtifactError):
            read_artifact(bytes(damaged))
        damaged[position] = content[position]


def test_every_truncation_and_extension_is_refused(content: bytes) -> None:
    for length in range(len(content)):
        with pytest.raises(ArtifactError):
            read_artifact(content[:length])
    for extra in (b"\0", b"TWMSIGN\x01", bytes(200), content):
        with pytest.raises(ArtifactError):
            read_artifact(content + extra)


def test_a_newer_format_is_refused_as_such(content: bytes) -> None:
    newer = bytearray(content)
    newer[len(MAGIC) : len(MAGIC) + 4] = (FORMAT_VERSION + 1).to_bytes(4, "little")
    with pytest.raises(IncompatibleArtifactError, match=f"format version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}"):
        read_artifact(bytes(newer))


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"PK\x03\x04" * 40, MAGIC, MAGIC + bytes(100), b"\x80\x04N."])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        read_artifact(path)


def _with_manifest(content: bytes, manifest: bytes) -> bytes:
    """Replace the manifest in a file, with updated checksums."""
    layout = parse_header(memoryview(content), "it")
    head, new = pack_header(manifest, {section.name: section.size for section in layout.sections}, signed=False)
    result = bytearray(head)
    for old, section in zip(layout.sections, new.sections, strict=True):
        result += bytes(section.offset - len(result)) + content[old.offset : old.offset + old.size]
    return bytes(result)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model_name": "m"}',
        b'"' + b"x" * 1_000_000,
        b"\xff\xfe",
        b"1e999999999",
        b"[" + b"0," * 1_000_000 + b"0]",
    ],
    ids=lambda value: repr(value[:12]),
)
def test_a_manifest_that_is_none_is_refused(content: bytes, manifest: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_artifact(_with_manifest(content, manifest))


def test_unknown_fields_of_the_manifest_are_refused(content: bytes) -> None:
    manifest = parse_header(memoryview(content), "it").manifest
    with pytest.raises(ArtifactError, match="surprise"):
        read_artifact(_with_manifest(content, manifest[:-1] + b',"surprise":1}'))
    read_artifact(_with_manifest(content, manifest))  # the helper itself changes nothing


def test_absurd_sizes_in_the_head_are_refused(content: bytes) -> None:
    for field in (slice(16, 24), slice(24, 32)):  # manifest bytes, content bytes
        for value in (0, 1, 2**32, 2**63, 2**64 - 1):
            head = bytearray(content)
            head[field] = value.to_bytes(8, "little")
            layout = parse_header(memoryview(content), "it")
            end = HEAD_BYTES + 32 * len(layout.sections) + len(layout.manifest)
            head[32:64] = hashlib.sha256(bytes(head[:32]) + bytes(head[64:end])).digest()
            with pytest.raises(ArtifactError):
                read_artifact(bytes(head))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.twm", tmp_path, tmp_path / "no" / "folder.twm", "nul\0byte"):
        with pytest.raises(StorageError):
            read_artifact(path)


def test_the_manifest_speaks_json() -> None:
    manifest = sample_artifact().manifest
    assert decode(encode(manifest), Manifest) == manifest
    axes, table = manifest.fixed_inputs
    assert axes.values == (1, 2)
    assert table.values is None
