"""Records that modules hold as JSON, read with msgspec: importing pydantic takes longer than loading a small module.

A record is checked where it is read (`decode`), or with `checked`; its constructor leaves types to type checkers.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

DIGEST_PATTERN = r"^[0-9a-f]{64}\Z"

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Record")


class FieldError(ValueError):
    """Text is not JSON of the type that was asked for, or a record cannot be such; the message names the place."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of the records."""


def decode(text: bytes | memoryview, kind: type[_T]) -> _T:
    """Read JSON as a type. Raises FieldError."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FieldError(str(error)) from error


def encode(record: Record) -> bytes:
    """Write a record as compact JSON. Raises FieldError where it holds what JSON cannot."""
    fields = msgspec.structs.asdict
    try:  # not with msgspec, which refuses subclasses of str, as TVM's strings are
        return json.dumps(record, default=fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise FieldError(str(error)) from error


def checked(record: _R) -> _R:
    """The record as it is read back. Raises FieldError where it cannot be."""
    return decode(encode(record), type(record))
