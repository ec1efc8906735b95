"""Signed modules load only with the signer's key, and not after changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from compiler.artifact import artifact_bytes, generate_keys, read_artifact, sign, signatures_of, write_artifact
from compiler.errors import ArtifactError, OptionError, SignatureError
from tests.compiler.artifact.samples import sample_artifact

KEYS = generate_keys()
OTHER = generate_keys()


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    path = tmp_path / "signed.twm"
    write_artifact(sample_artifact(), path, KEYS.private)
    return path


def test_the_signers_key_is_accepted(signed: Path) -> None:
    assert read_artifact(signed, [OTHER.public, KEYS.public]).manifest.model_name == "sample"
    assert read_artifact(signed).manifest.model_name == "sample"


def test_another_key_is_not(signed: Path) -> None:
    with pytest.raises(SignatureError, match="none of the trusted keys"):
        read_artifact(signed, [OTHER.public])
    with pytest.raises(SignatureError):
        read_artifact(signed, [])


def test_an_unsigned_module_is_refused_where_a_signature_is_required(tmp_path: Path) -> None:
    path = tmp_path / "unsigned.twm"
    write_artifact(sample_artifact(), path)
    with pytest.raises(SignatureError, match="not signed"):
        read_artifact(path, [KEYS.public])


def test_signing_later_and_twice(tmp_path: Path) -> None:
    path = tmp_path / "later.twm"
    write_artifact(sample_artifact(), path)
    for keys in (KEYS, OTHER, KEYS):
        sign(path, keys.private)
    assert [signature.public_key for signature in signatures_of(path)] == [OTHER.public, KEYS.public]
    read_artifact(path, [KEYS.public])
    read_artifact(path, [OTHER.public])


def test_every_byte_of_a_signed_module_is_checked(signed: Path) -> None:
    content = signed.read_bytes()
    damaged = bytearray(content)
    for position in range(len(content)):
        damaged[position] ^= 0x40
        with pytest.raises(ArtifactError):
            read_artifact(bytes(damaged))
        damaged[position] = content[position]
    for length in range(len(content)):
        with pytest.raises(ArtifactError):
            read_artifact(content[:length])


def test_a_signature_does_not_fit_another_module() -> None:
    one = artifact_bytes(sample_artifact(), KEYS.private)
    other = artifact_bytes(sample_artifact(model_name="sampla"), OTHER.private)
    assert len(one) == len(other)
    block = 16 + 32 + 64 + 32
    with pytest.raises(SignatureError, match="is wrong"):
        read_artifact(other[:-block] + one[-block:], [KEYS.public])


def test_pem_files(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    secret, public, wrong = tmp_path / "secret.pem", tmp_path / "public.pem", tmp_path / "wrong.pem"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    elliptic = ec.generate_private_key(ec.SECP256R1())
    wrong.write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path = tmp_path / "a.twm"
    write_artifact(sample_artifact(), path, secret)
    read_artifact(path, [str(public)])
    for key in (wrong, public, tmp_path / "missing.pem", b"short"):
        with pytest.raises(OptionError):
            sign(path, key)
    for key in (secret, tmp_path / "missing.pem", b"short"):
        with pytest.raises(OptionError):
            read_artifact(path, [key])
    read_artifact(path, [public])  # the failed attempts left it as it was
