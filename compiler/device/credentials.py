"""Credentials of a client, and the identity of the server that it connects to."""

from __future__ import annotations

from dataclasses import dataclass, field

from compiler.artifact import Key, KeyKind, private_key_bytes, public_key_bytes


@dataclass(frozen=True)
class Credentials:
    """X25519 keys, 32 raw bytes each.

    Attributes:
        private_key: private key of this client; the server was started with its public key (`--client-key`).
        device_key: the public key of the server.
    """

    private_key: bytes = field(repr=False)
    device_key: bytes


def load_credentials(private_key: Key, device_key: Key, passphrase: bytes | None = None) -> Credentials:
    """The credentials from raw keys or PEM files. Raises OptionError if one is not an X25519 key, or is encrypted and
    the passphrase is missing or wrong."""
    private = private_key_bytes(private_key, KeyKind.CONNECTION, passphrase)
    return Credentials(private, public_key_bytes(device_key, KeyKind.CONNECTION))
