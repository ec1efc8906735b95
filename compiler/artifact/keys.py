"""Keys in PEM files: Ed25519 keys for signing modules, and X25519 keys for connections to devices.

Private keys are in PKCS #8 format, encrypted if a passphrase is given; public keys are in SubjectPublicKeyInfo format
(RFC 8410). A signature covers a module's head digest, which covers the manifest and, through it, every other byte.

The block after the content: magic (8), count u32, 4 zero bytes, then public key (32) and signature (64) for each
signature, and a SHA-256 of all these bytes. The keys in the block say who claims to have signed; which keys to trust is
the loader's decision.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from compiler.errors import ArtifactError, OptionError, SignatureError, StorageError, type_text

KEY_BYTES = 32
PASSPHRASE_VARIABLE = "TENSORWRIGHT_PASSPHRASE"
PUBLIC_SUFFIX = ".pub"
_FOLDER_SUFFIXES = (".pem", PUBLIC_SUFFIX)

Key = bytes | str | Path
"""A key: 32 raw bytes, or the path of a PEM file."""


class KeyKind(str, Enum):
    """Purpose of a key."""

    SIGNING = "signing"
    CONNECTION = "connection"

    @property
    def algorithm(self) -> str:
        """The curve's name."""
        return "Ed25519" if self is KeyKind.SIGNING else "X25519"

    @property
    def private_class(self) -> Any:
        """The class of private keys."""
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

        return ed25519.Ed25519PrivateKey if self is KeyKind.SIGNING else x25519.X25519PrivateKey

    @property
    def public_class(self) -> Any:
        """The class of public keys."""
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

        return ed25519.Ed25519PublicKey if self is KeyKind.SIGNING else x25519.X25519PublicKey


@dataclass(frozen=True)
class KeyPair:
    """A key pair as raw bytes, 32 each. Only the private key is secret."""

    private: bytes
    public: bytes


def generate_keys(kind: KeyKind = KeyKind.SIGNING) -> KeyPair:
    """Generate a new key pair from the operating system's random source."""
    key = kind.private_class.generate()
    return KeyPair(key.private_bytes_raw(), key.public_key().public_bytes_raw())


def write_new_keys(path: Path, kind: KeyKind = KeyKind.SIGNING, passphrase: bytes | None = None) -> Path:
    """Generate a key pair: the private key is written to a new file that only its owner can read (mode 0600), the
    public key to `path`.pub.

    Args:
        passphrase: encrypts the private key.

    Returns:
        The path of the public key.

    Raises:
        OptionError: a file with that name exists, or the passphrase is empty.
        StorageError: a file cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as form

    if passphrase is not None and not passphrase:
        raise OptionError("the passphrase is empty", "give one, or leave the private key unencrypted")
    key, public = kind.private_class.generate(), Path(f"{path}{PUBLIC_SUFFIX}")
    if public.exists():
        raise OptionError(f"{public} exists", "give another name: keys are never overwritten")
    encryption = form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption()
    _write_new(path, key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, encryption), 0o600)
    text = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    _write_new(public, text, 0o644)
    return public


def public_key_bytes(key: Key, kind: KeyKind = KeyKind.SIGNING) -> bytes:
    """The 32 raw bytes of a public key. Raises OptionError if it is not a public key of that kind, or has small order,
    in which case anyone can create matching signatures or shared secrets."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if isinstance(key, bytes):
        if len(key) != KEY_BYTES:
            raise OptionError(f"a raw {kind.algorithm} public key has {KEY_BYTES} bytes, not {len(key)}")
        raw, name = key, f"public key {key.hex()[:16]}..."
    else:
        try:
            loaded = load_pem_public_key(_read_pem(key))
        except ValueError as error:
            raise OptionError(f"{key} holds no {kind.algorithm} public key in PEM form: {error}") from error
        if not isinstance(loaded, kind.public_class):
            raise OptionError(f"{key} holds {type_text(loaded)}; an {kind.algorithm} public key is needed")
        raw, name = loaded.public_bytes_raw(), str(key)
    if not (_is_usable_point(raw) if kind is KeyKind.SIGNING else _gives_secrets(raw)):
        raise OptionError(f"{name} is not a usable {kind.algorithm} public key: it is of small order")
    return raw


def public_keys(keys: Sequence[Key], kind: KeyKind = KeyKind.SIGNING) -> tuple[bytes, ...]:
    """The raw bytes of public keys; a folder stands for the `.pem` and `.pub` files in it. Raises OptionError as for
    `public_key_bytes`, or a folder contains no such file."""
    found: list[bytes] = []
    for key in keys:
        if isinstance(key, bytes) or not Path(key).is_dir():
            found.append(public_key_bytes(key, kind))
            continue
        files = sorted(each for each in Path(key).iterdir() if each.name.endswith(_FOLDER_SUFFIXES))
        if not files:
            raise OptionError(f"the folder of keys {key} holds no .pem or .pub file")
        found += [public_key_bytes(each, kind) for each in files]
    return tuple(found)


def private_key_bytes(key: Key, kind: KeyKind = KeyKind.SIGNING, passphrase: bytes | None = None) -> bytes:
    """The 32 raw bytes of a private key. Raises OptionError if it is not a private key of that kind, or is encrypted
    and the passphrase is missing or wrong. `passphrase`: passphrase of an encrypted file; the environment variable
    TENSORWRIGHT_PASSPHRASE when None."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if isinstance(key, bytes):
        if len(key) != KEY_BYTES:
            raise OptionError(f"a raw {kind.algorithm} private key has {KEY_BYTES} bytes, not {len(key)}")
        return key
    pem = _read_pem(key)
    encrypted = is_encrypted(pem)
    if encrypted and passphrase is None:
        passphrase = os.environ.get(PASSPHRASE_VARIABLE, "").encode() or None
        if passphrase is None:
            raise OptionError(f"the private key {key} is encrypted", f"set {PASSPHRASE_VARIABLE} to its passphrase")
    try:
        loaded = load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError) as error:
        what = "cannot be decrypted with this passphrase" if encrypted else "holds no private key in PEM form"
        raise OptionError(f"{key} {what}: {error}") from error
    if not isinstance(loaded, kind.private_class):
        raise OptionError(f"{key} holds {type_text(loaded)}; an {kind.algorithm} private key is needed")
    raw: bytes = loaded.private_bytes_raw()
    return raw


def public_of(private_key: bytes, kind: KeyKind = KeyKind.SIGNING) -> bytes:
    """The raw public key for a raw private key."""
    raw: bytes = kind.private_class.from_private_bytes(private_key).public_key().public_bytes_raw()
    return raw


def kind_of(path: str | Path) -> KeyKind:
    """The kind of the public key in a PEM file. Raises OptionError if it is of neither kind."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        loaded = load_pem_public_key(_read_pem(path))
    except ValueError as error:
        raise OptionError(f"{path} holds no public key in PEM form: {error}") from error
    for kind in KeyKind:
        if isinstance(loaded, kind.public_class):
            return kind
    raise OptionError(f"{path} holds {type_text(loaded)}; Ed25519 and X25519 keys are used")


def is_encrypted(pem: bytes) -> bool:
    """True if a PEM text contains an encrypted private key."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem


_FIELD = 2**255 - 19
_ORDER_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
# The y coordinates of the points of order 1, 2, 4 and 8, as in libsodium's ge25519_has_small_order.
_SMALL_ORDER = frozenset({0, 1, _FIELD - 1, _ORDER_EIGHT, _FIELD - _ORDER_EIGHT})


def _is_usable_point(raw: bytes) -> bool:
    """True if an Ed25519 public key is in canonical form and does not have small order."""
    y = int.from_bytes(raw, "little") & (1 << 255) - 1
    return y < _FIELD and y not in _SMALL_ORDER


def _gives_secrets(raw: bytes) -> bool:
    """True if an X25519 public key does not have small order: with keys of small order, every private key gives the
    same secret."""
    try:
        KeyKind.CONNECTION.private_class.generate().exchange(KeyKind.CONNECTION.public_class.from_public_bytes(raw))
    except ValueError:
        return False
    return True


def _read_pem(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"the key file {path} cannot be read: {error.strerror or error}") from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise OptionError(f"{path} exists", "give another name: keys are never overwritten") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


_MAGIC = b"TWMSIGN\x01"
_HEAD = struct.Struct("<8sI4s")
_SIGNATURE_BYTES = 64
_CONTEXT = b"tensorwright module signature v1\0"  # so that signatures created for other purposes are not valid here
_MAX_SIGNATURES = 64


@dataclass(frozen=True)
class Signature:
    """One signature with the raw public key of its claimed signer."""

    public_key: bytes
    value: bytes


def make_signature(digest: bytes, private_key: Key) -> Signature:
    """Sign a head digest. Raises OptionError if the key is not a valid private key."""
    key = KeyKind.SIGNING.private_class.from_private_bytes(private_key_bytes(private_key))
    return Signature(key.public_key().public_bytes_raw(), key.sign(_CONTEXT + digest))


def pack_signatures(signatures: Sequence[Signature]) -> bytes:
    """The block after the content; empty if there are no signatures."""
    if not signatures:
        return b""
    block = _HEAD.pack(_MAGIC, len(signatures), bytes(4)) + b"".join(s.public_key + s.value for s in signatures)
    return block + hashlib.sha256(block).digest()


def parse_signatures(block: memoryview, origin: str) -> tuple[Signature, ...]:
    """Read the data after the content. Raises ArtifactError if it is neither empty nor a complete signature block."""
    if not block:
        return ()
    entry_bytes = KEY_BYTES + _SIGNATURE_BYTES
    body_bytes = len(block) - _HEAD.size - hashlib.sha256().digest_size
    damaged = ArtifactError(f"{origin} is damaged: the data after its content is not a signature block")
    if body_bytes < entry_bytes or body_bytes % entry_bytes or body_bytes > entry_bytes * _MAX_SIGNATURES:
        raise damaged
    end = _HEAD.size + body_bytes
    magic, count, zeros = _HEAD.unpack(block[: _HEAD.size])
    if magic != _MAGIC or count * entry_bytes != body_bytes or any(zeros):
        raise damaged
    if hashlib.sha256(block[:end]).digest() != bytes(block[end:]):
        raise damaged
    raw = bytes(block[_HEAD.size : end])
    return tuple(
        Signature(raw[start : start + KEY_BYTES], raw[start + KEY_BYTES : start + entry_bytes])
        for start in range(0, body_bytes, entry_bytes)
    )


def check_signatures(signatures: Sequence[Signature], digest: bytes, trusted: Sequence[Key], origin: str) -> None:
    """Require a valid signature by one of the trusted public keys.

    Raises:
        SignatureError: there is none, or a trusted key's signature is invalid.
        OptionError: a trusted key is not a valid key.
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
