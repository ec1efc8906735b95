"""Ed25519 signatures over a module's head digest, which covers the manifest and, through it, every other byte.

The block after the content: magic (8), count u32, 4 zero bytes, then public key (32) and signature (64) of each, and a
SHA-256 of all that. The keys in the block say who claims to have signed; whom to trust is the loader's decision.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.artifact.keys import KEY_BYTES, Key, KeyKind, private_key_bytes, public_keys
from compiler.errors import ArtifactError, SignatureError

_MAGIC = b"TWMSIGN\x01"
_HEAD = struct.Struct("<8sI4s")
_SIGNATURE_BYTES = 64
_CONTEXT = b"tensorwright module signature v1\0"  # so that a signature made for anything else is not valid here
_MAX_SIGNATURES = 64


@dataclass(frozen=True)
class Signature:
    """One signature, with the raw public key that it claims."""

    public_key: bytes
    value: bytes


def make_signature(digest: bytes, private_key: Key) -> Signature:
    """Sign a head digest. Raises OptionError for a key that is none."""
    key = KeyKind.SIGNING.private_class.from_private_bytes(private_key_bytes(private_key))
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
    each = KEY_BYTES + _SIGNATURE_BYTES
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
        Signature(raw[start : start + KEY_BYTES], raw[start + KEY_BYTES : start + each])
        for start in range(0, body_bytes, each)
    )


def check_signatures(signatures: Sequence[Signature], digest: bytes, trusted: Sequence[Key], origin: str) -> None:
    """Require a valid signature by one of the trusted public keys.

    Raises:
        SignatureError: there is none, or a trusted key's signature is wrong.
        OptionError: a trusted key is not a key.
    """
    keys = set(public_keys(trusted))
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
