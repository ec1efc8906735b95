"""The initiator of Noise_IK_25519_ChaChaPoly_SHA256 (noiseprotocol.org, revision 34).

The initiator knows the responder's static key beforehand and sends its own, encrypted; fresh ephemeral keys make the
keys of each session new. The responder is `cpp/noise.cc`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

_NAME = b"Noise_IK_25519_ChaChaPoly_SHA256"
_KEY_BYTES = 32
TAG_BYTES = 16
SECOND_MESSAGE_BYTES = _KEY_BYTES + TAG_BYTES


class HandshakeError(Exception):
    """Authentication failed: the peer lacks the expected key, or a message was tampered with."""


class Cipher:
    """One direction of a session: ChaCha20-Poly1305 with a counter as the nonce."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._counter = 0

    def _nonce(self) -> bytes:
        nonce = struct.pack("<4xQ", self._counter)
        self._counter += 1
        return nonce

    def encrypt(self, plain: bytes, associated: bytes = b"") -> bytes:
        """The next message, encrypted."""
        return self._cipher.encrypt(self._nonce(), plain, associated)

    def decrypt(self, message: bytes, associated: bytes = b"") -> bytes:
        """Decrypt the next message. Raises HandshakeError if it is not the peer's next message."""
        try:
            return self._cipher.decrypt(self._nonce(), message, associated)
        except InvalidTag as error:
            raise HandshakeError("a message was not encrypted by the peer") from error


class Initiator:
    """A handshake: `first_message()`, then `read_second(...)`, which returns the session's ciphers."""

    def __init__(
        self, private_key: bytes, responder_key: bytes, prologue: bytes, *, ephemeral: bytes | None = None
    ) -> None:
        """Start a handshake.

        Args:
            private_key: this side's static X25519 key, 32 bytes.
            responder_key: the other side's static public key.
            prologue: data already known to both sides.
            ephemeral: a private key for tests; None: a fresh one.
        """
        self._static = X25519PrivateKey.from_private_bytes(private_key)
        self._responder = X25519PublicKey.from_public_bytes(responder_key)
        fresh = X25519PrivateKey.generate()
        self._ephemeral = fresh if ephemeral is None else X25519PrivateKey.from_private_bytes(ephemeral)
        self._hash = self._chaining = _NAME
        self._cipher: Cipher | None = None
        self._mix_hash(prologue)
        self._mix_hash(responder_key)

    def first_message(self) -> bytes:
        """The first handshake message, sent to the responder."""
        open_key = self._ephemeral.public_key().public_bytes_raw()
        self._mix_hash(open_key)
        self._mix_key(self._ephemeral, self._responder)
        encrypted = self._encrypt(self._static.public_key().public_bytes_raw())
        self._mix_key(self._static, self._responder)
        return open_key + encrypted + self._encrypt(b"")

    def read_second(self, message: bytes) -> tuple[Cipher, Cipher]:
        """Return the ciphers for (sending, receiving). Raises HandshakeError if the peer is not the responder."""
        if len(message) != SECOND_MESSAGE_BYTES:
            raise HandshakeError("the handshake response has the wrong length")
        self._mix_hash(message[:_KEY_BYTES])
        remote = X25519PublicKey.from_public_bytes(message[:_KEY_BYTES])
        self._mix_key(self._ephemeral, remote)
        self._mix_key(self._static, remote)
        assert self._cipher is not None
        self._cipher.decrypt(message[_KEY_BYTES:], self._hash)
        first, second = _derive(self._chaining, b"")
        return Cipher(first), Cipher(second)

    def _encrypt(self, plain: bytes) -> bytes:
        assert self._cipher is not None
        message = self._cipher.encrypt(plain, self._hash)
        self._mix_hash(message)
        return message

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, private: X25519PrivateKey, public: X25519PublicKey) -> None:
        try:
            secret = private.exchange(public)
        except ValueError as error:  # a key of small order
            raise HandshakeError("the peer's key gives no shared secret") from error
        self._chaining, key = _derive(self._chaining, secret)
        self._cipher = Cipher(key)


def _derive(chaining: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs, as defined by Noise."""
    temporary = hmac.digest(chaining, secret, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")
