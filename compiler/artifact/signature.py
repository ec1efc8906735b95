"""Ed25519 signatures over a module's head digest, which covers the manifest and, through it, every other byte.

The block after the content: magic (8), count u32, 4 zero bytes, then public key (32) and signature (64) of each, and a
SHA-256 of all that. The keys in the block say who claims to have signed; whom to trust is the loader's decision.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import ArtifactError, OptionError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAGIC = b"TWMSIGN\x01"
_HEAD = struct.Struct("<8sI4s")
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_CONTEXT = b"tensorwright module signature v1\0"  # so that a signature made for anything else is not valid here
_MAX_SIGNATURES = 64

Key = bytes | str | Path
"""A key: 32 raw bytes, or the path of a PEM file."""


@dataclass(frozen=True)
class Signature:
    """One signature, with the raw public key that it claims."""

    public_key: bytes
    value: bytes


@dataclass(frozen=True)
class KeyPair:
    """An Ed25519 key pair as raw bytes, 32 each. The private one is the only secret."""

    private: bytes
    public: bytes


def generate_keys() -> KeyPair:
    """Make a new key pair from the operating system's random source."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return KeyPair(key.private_bytes_raw(), key.public_key().public_bytes_raw())


def make_signature(digest: bytes, private_key: Key) -> Signature:
    """Sign a head digest. Raises OptionError for a key that is none."""
    key = _private_key(private_key)
    return Signature(key.public_key().public_bytes_raw(), key.sign(_CONTEXT + digest))


def pack_signatures(signatures: Sequence[Signature]) -> bytes:
    """The block that follows the content; empty when there are no signatures."""
    if not signatures:
        return b""
    block = _HEAD.pack(_MAGIC, len(signatures), bytes(4)) + b"".join(s.public_key + s.value for s in signatures)
    return block + hashlib.sha256(block).digest()


def parse_signatures(block: memoryview, origin: str) -> tuple[Signature, ...]:
    """Read what follows the content. Raises ArtifactError when it is neither nothing nor a whole signature block."""
    if not block:
        return ()
    each = _KEY_BYTES + _SIGNATURE_BYTES
    body_bytes = len(block) - _HEAD.size - hashlib.sha256().digest_size
    damaged = ArtifactError(f"{origin} is damaged: what follows its content is not a signature block")
    if body_bytes < each or body_bytes % each or body_bytes > each * _MAX_SIGNATURES:
        raise damaged
    end = _HEAD.size + body_bytes
    magic, count, zeros = _HEAD.unpack(block[: _HEAD.size])
    if magic != _MAGIC or count * each != body_bytes or any(zeros):
        raise damaged
    if hashlib.sha256(block[:end]).digest() != bytes(block[end:]):
        raise damaged
    raw = bytes(block[_HEAD.size : end])
    return tuple(
        Signature(raw[start : start + _KEY_BYTES], raw[start + _KEY_BYTES : start + each])
        for start in range(0, body_bytes, each)
    )


def check_signatures(signatures: Sequence[Signature], digest: bytes, trusted: Sequence[Key], origin: str) -> None:
    """Require a valid signature by one of the trusted public keys.

    Raises:
        SignatureError: there is none, or a trusted key's signature is wrong.
        OptionError: a trusted key is not a key.
    """
    keys = {public_key_bytes(key) for key in trusted}
    if not signatures:
        raise SignatureError(f"{origin} is not signed", "a signature by a trusted key is required: sign it")
    candidates = [signature for signature in signatures if signature.public_key in keys]
    if not candidates:
        names = ", ".join(signature.public_key.hex()[:16] for signature in signatures)
        raise SignatureError(f"{origin} is signed by none of the trusted keys, only by {names}...")
    for signature in candidates:
        if not _is_valid(signature, digest):
            raise SignatureError(
                f"{origin}: the signature by trusted key {signature.public_key.hex()[:16]}... is wrong"
            )


def _is_valid(signature: Signature, digest: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(signature.public_key).verify(signature.value, _CONTEXT + digest)
    except InvalidSignature:
        return False
    return True


def public_key_bytes(key: Key) -> bytes:
    """The 32 raw bytes of a public key. Raises OptionError for anything that is not an Ed25519 public key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if isinstance(key, bytes):
        if len(key) != _KEY_BYTES:
            raise OptionError(f"a raw Ed25519 public key has {_KEY_BYTES} bytes, not {len(key)}")
        return key
    try:
        loaded = load_pem_public_key(_read_pem(key))
    except ValueError as error:
        raise OptionError(f"{key} holds no public key in PEM form: {error}") from error
    if not isinstance(loaded, Ed25519PublicKey):
        raise OptionError(f"{key} holds a {type(loaded).__name__}; an Ed25519 public key is needed")
    return loaded.public_bytes_raw()


def _private_key(key: Key) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if isinstance(key, bytes):
        if len(key) != _KEY_BYTES:
            raise OptionError(f"a raw Ed25519 private key has {_KEY_BYTES} bytes, not {len(key)}")
        return Ed25519PrivateKey.from_private_bytes(key)
    try:
        loaded = load_pem_private_key(_read_pem(key), password=None)
    except (ValueError, TypeError) as error:
        raise OptionError(f"{key} holds no unencrypted private key in PEM form: {error}") from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise OptionError(f"{key} holds a {type(loaded).__name__}; an Ed25519 private key is needed")
    return loaded


def _read_pem(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"the key file {path} can not be read: {error.strerror or error}") from error
