"""Digests of inputs: the keys of exact and embedding caches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from compiler.serving.request import Array

_BYTES = 32


def request_digest(identity: str, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> str:
    """Return the digest of a request: the model's identity, its inputs (names, types, shapes, bytes) and the requested
    outputs."""
    digest = _begin(identity, outputs)
    for name in sorted(inputs):
        _add_array(digest, name, inputs[name])
    return digest.hexdigest()


def row_digests(identity: str, inputs: Mapping[str, Array], outputs: Sequence[str] | None, count: int) -> list[str]:
    """Return digests of the `count` rows of a request; equal rows have equal digests in any batch."""
    begin = _begin(identity, outputs)
    digests = []
    for row in range(count):
        digest = begin.copy()
        for name in sorted(inputs):
            _add_array(digest, name, inputs[name][row])
        digests.append(digest.hexdigest())
    return digests


def _begin(identity: str, outputs: Sequence[str] | None) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=_BYTES)
    _add(digest, identity.encode())
    for name in ["*"] if outputs is None else ["=", *sorted(outputs)]:
        _add(digest, name.encode())
    return digest


def _add_array(digest: hashlib.blake2b, name: str, array: Array) -> None:
    _add(digest, f"{name} {array.dtype} {array.shape}".encode())
    _add(digest, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")


def _add(digest: hashlib.blake2b, part: bytes | memoryview) -> None:
    # The length comes first, so that different lists of parts never have the same bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
