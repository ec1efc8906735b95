"""Form data of requests (multipart/form-data)."""

from __future__ import annotations

import re
from email.message import Message

from compiler.errors import InputError
from compiler.serving.app.http import Call

_MOST_FIELDS = 64


def form_fields(call: Call) -> dict[str, bytes]:
    """The fields of a form by name; of several of one name the last. Raises InputError where there is none."""
    kind = call.headers.get(b"content-type", b"").decode("latin-1")
    boundary = _parameter(kind, "boundary")
    if not kind.lower().startswith("multipart/form-data") or not boundary:
        raise InputError("the request is not a form", "send multipart/form-data")
    parts = (b"\r\n" + call.body).split(b"\r\n--" + boundary.encode("latin-1"), _MOST_FIELDS + 1)
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise InputError(f"the form does not end, or has more than {_MOST_FIELDS} fields")
    fields = {}
    for part in parts[1:-1]:
        head, found, content = part.partition(b"\r\n\r\n")
        name = _name(head.decode("utf-8", "replace"))
        if not found or name is None:
            raise InputError("a field of the form has no name")
        fields[name] = content
    return fields


def _name(head: str) -> str | None:
    match = re.search(r"^content-disposition:(.*)$", head, re.IGNORECASE | re.MULTILINE)
    return None if match is None else _parameter(match.group(1).strip(), "name")


def _parameter(value: str, name: str) -> str | None:
    message = Message()
    message["content-type"] = value
    found = message.get_param(name)
    return found if isinstance(found, str) else None
