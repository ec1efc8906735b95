"""Form data of requests (multipart/form-data), by python-multipart."""

from __future__ import annotations

from typing import Any

from compiler.errors import InputError
from compiler.serving.app.http import Call
from compiler.serving.limits import Limits
from compiler.support.optional import optional_module
from compiler.support.shown import shown

FILE = "file"
"""The field that may be large: an uploaded file."""
_PIECE = 64 << 10  # bytes that are parsed before limits are looked at


def form_fields(call: Call) -> dict[str, bytes]:
    """The fields of a form by name; of several of one name the last.

    Raises InputError where there is no form, LimitError where it passes limits.
    """
    multipart: Any = optional_module("python_multipart.multipart", "serve", "parses forms")
    limits = call.limits
    content_type = call.headers.get(b"content-type", b"")
    limits.check("form_header_bytes", len(content_type))
    kind, options = multipart.parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InputError("the request is not a form", "send multipart/form-data")
    reader = _Reader(limits, multipart.parse_options_header)
    try:
        parser = multipart.MultipartParser(boundary, reader.callbacks(), max_header_size=limits.form_header_bytes)
        body = memoryview(call.body)
        for start in range(0, len(body), _PIECE):
            parser.write(bytes(body[start : start + _PIECE]))
        parser.finalize()
    except multipart.FormParserError as error:  # of a header that is too long as well, which has no class of its own
        hint = f"a header of it may have {limits.form_header_bytes} bytes (the server's limit 'form_header_bytes')"
        raise InputError(f"the form cannot be read: {error}", hint) from error
    if not reader.ended:
        raise InputError("the form does not end")
    return {name: b"".join(pieces) for name, pieces in reader.fields.items()}


class _Reader:
    """Takes what the parser finds."""

    def __init__(self, limits: Limits, parse_header: Any) -> None:
        self._limits, self._parse_header = limits, parse_header
        self._name, self._value, self._parts, self._size = b"", b"", 0, 0
        self._field: str | None = None
        self.fields: dict[str, list[bytes]] = {}
        self.ended = False

    def callbacks(self) -> dict[str, Any]:
        """Callbacks of the parser."""
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        self._parts += 1
        self._limits.check("form_parts", self._parts)
        self._field, self._size = None, 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name, value, self._name, self._value = self._name, self._value, b"", b""
        if name.lower() == b"content-disposition":
            found = self._parse_header(value)[1].get(b"name")
            self._field = None if found is None else found.decode("utf-8", "replace")

    def _headers_finished(self) -> None:
        if self._field is None:
            raise InputError("a field of the form has no name")
        self.fields[self._field] = []

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._field is not None
        self._size += end - start
        if self._field != FILE:
            self._limits.check("form_text_bytes", self._size)
        self.fields[self._field].append(data[start:end])

    def _end(self) -> None:
        self.ended = True


def text_fields(fields: dict[str, bytes]) -> dict[str, str]:
    """The fields but the file, as texts. Raises InputError."""
    try:
        return {name: value.decode() for name, value in fields.items() if name != FILE}
    except UnicodeDecodeError as error:
        names = ", ".join(map(shown, fields))
        raise InputError(f"one of the fields {names} is not valid UTF-8") from error
