"""API keys, and restrictions on browsers' requests to a server without keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from compiler.serving.app.http import HttpError

_CHALLENGES = (  # one header each: browsers read only the first scheme of a header
    (b"www-authenticate", b"Bearer"),
    (b"www-authenticate", b'Basic realm="Tensorwright", charset="UTF-8"'),
)
_MAX_HOST_BYTES = 512  # of a name that can be this machine's
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ApiKeys:
    """API keys of a server's clients, as digests."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = tuple(digests)

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise HttpError unless the request has one of the keys; takes the same time for every wrong key."""
        if not self._digests:
            return
        key = headers.get(b"x-api-key") or headers.get(b"api-key") or b""
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            key = token.strip()
        elif scheme.lower() == b"basic":
            key = _password(token)
            _check_same_site(headers)
        digest = hashlib.sha256(key).digest()
        known = False
        for each in self._digests:
            known |= hmac.compare_digest(digest, each)
        if not known:
            hint = "send it as Authorization: Bearer KEY; in a browser it is the password"
            raise HttpError(401, "a valid API key is required", hint, _CHALLENGES)


def check_browser(headers: Mapping[bytes, bytes]) -> None:
    """Refuse cross-site requests to a server on this machine without keys.

    A browser sends the page's site as the origin, and a DNS name that was rebound to this machine as the host.

    Raises HttpError.
    """
    if not _is_local_host(headers.get(b"host", b"localhost")[:_MAX_HOST_BYTES]):
        raise HttpError(403, "the request's host is not this machine", "serve with API keys to be reached by that name")
    origin = headers.get(b"origin")
    if origin is not None and not _is_local(origin[:_MAX_HOST_BYTES]):
        raise HttpError(403, "pages of other sites are not answered", "serve with API keys")


def _password(token: bytes) -> bytes:
    """Return the password of basic authentication, which browsers use; empty if there is none."""
    try:
        return base64.b64decode(token.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _check_same_site(headers: Mapping[bytes, bytes]) -> None:
    """Refuse cross-site requests, since browsers send the password for any page. Raises HttpError."""
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        raise HttpError(403, "pages of other sites are not answered", "send the API key as Authorization: Bearer KEY")


@lru_cache(maxsize=64)
def _is_local_host(host: bytes) -> bool:
    return _is_local(b"//" + host)


@lru_cache(maxsize=64)
def _is_local(url: bytes) -> bool:
    try:
        return urlsplit(url.decode("latin-1")).hostname in _LOOPBACK
    except ValueError:
        return False
