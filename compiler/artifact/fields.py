"""Records that modules store as JSON, read with msgspec: importing pydantic takes longer than loading a small module.

A record is checked when it is read (`decode`), or with `checked`; constructors do not check types.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

DIGEST_PATTERN = r"^[0-9a-f]{64}\Z"

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Record")


class FieldError(ValueError):
    """Text is not JSON of the requested type, or a record cannot be represented; the message names the location."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of the records."""


def decode(text: bytes | memoryview, kind: type[_T]) -> _T:
    """Read JSON as a type. Raises FieldError."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FieldError(str(error)) from error


def encode(record: Record) -> bytes:
    """Write a record as compact JSON. Raises FieldError if it contains values that JSON cannot represent."""
    fields = msgspec.structs.asdict
    try:  # not with msgspec, which rejects subclasses of str such as TVM's strings
        return json.dumps(record, default=fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise FieldError(str(error)) from error


def checked(record: _R) -> _R:
    """The record after encoding and decoding. Raises FieldError if that is not possible."""
    return decode(encode(record), type(record))
