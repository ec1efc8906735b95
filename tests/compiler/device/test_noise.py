"""The handshake against another implementation's bytes (noiseprotocol 0.3.1 of PyPI)."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from compiler.device.noise import HandshakeError, Initiator

_CLIENT, _SERVER, _EPHEMERAL = bytes(range(1, 33)), bytes(range(33, 65)), bytes(range(65, 97))
_SERVER_KEY = X25519PrivateKey.from_private_bytes(_SERVER).public_key().public_bytes_raw()
_FIRST = (
    "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d4846646a29af5ec4483a759c3537de9d8be0e"
    "9de3f950dcde27a868221e1ede553a69b47ed62e2d4a058aefb60cfd1cc7da2e7428d91e9dd7206b1928483b0690d3cd"
)
_SECOND = "244fe3b963e899dd295baffce248d3530f3a9a7479ba063002680ebfe7adad49252423ac133df92b5066788e18c7886e"


def test_a_handshake_and_messages() -> None:
    initiator = Initiator(_CLIENT, _SERVER_KEY, b"prologue", ephemeral=_EPHEMERAL)
    assert initiator.first_message().hex() == _FIRST
    send, receive = initiator.read_second(bytes.fromhex(_SECOND))
    assert send.encrypt(b"hello").hex() == "8ec70536785759552141a5cb20d7c408d666383cd5"
    assert send.encrypt(b"again").hex() == "b20b4ac9fbabcac44ad0f94e97e69687002ac942d1"
    assert receive.decrypt(bytes.fromhex("2c2541cc508699964a2a13393ce571621b29fc5bd2")) == b"hello"


def test_what_the_responder_did_not_say_is_refused() -> None:
    for position in (0, 31, 32, 47):
        initiator = Initiator(_CLIENT, _SERVER_KEY, b"prologue", ephemeral=_EPHEMERAL)
        initiator.first_message()
        changed = bytearray.fromhex(_SECOND)
        changed[position] ^= 1
        with pytest.raises(HandshakeError):
            initiator.read_second(bytes(changed))
    initiator = Initiator(_CLIENT, _SERVER_KEY, b"prologue", ephemeral=_EPHEMERAL)
    initiator.first_message()
    with pytest.raises(HandshakeError, match="gives no shared secret"):
        initiator.read_second(bytes(48))
    with pytest.raises(HandshakeError, match="length"):
        initiator.read_second(bytes(47))
