"""Forms: the parsed fields, and limits that stop parsing early."""

from __future__ import annotations

import pytest

from compiler.errors import InputError
from compiler.serving.app.http import Call
from compiler.serving.app.transcriptions import form_fields, text_fields
from compiler.serving.limits import LimitError, Limits

FORM = b"multipart/form-data; boundary=b"


def _call(body: bytes, content_type: bytes = FORM, limits: Limits | None = None) -> Call:
    return Call("POST", "/", {b"content-type": content_type}, body, 0.0, limits=limits or Limits())


def _part(name: bytes, content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + content + b"\r\n"


def test_fields_are_read_and_the_last_of_a_name_counts() -> None:
    body = (
        _part(b"model", b"a") + _part(b"file", b"\r\n--bx\r\n\0" * 9000) + _part(b"model", "\u00e4".encode()) + b"--b--"
    )
    fields = form_fields(_call(body))
    assert (fields["file"], text_fields(fields)) == (b"\r\n--bx\r\n\0" * 9000, {"model": "\u00e4"})


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", FORM),
        (b"x", b"text/plain"),
        (b"x", b"multipart/form-data"),
        (b"x", b"multipart/form-data; boundary=" + b"b" * 300),
        (_part(b"a", b"x"), FORM),
        (b"--b\r\nContent-Type: a\r\n\r\nx\r\n--b--", FORM),
        (b"--b\r\n" + b"A: b\r\n" * 10000 + b"\r\nx\r\n--b--", FORM),
    ],
)
def test_what_is_no_form_is_one_error(body: bytes, content_type: bytes) -> None:
    with pytest.raises(InputError):
        form_fields(_call(body, content_type))


def test_a_header_of_semicolons_is_refused_by_its_length() -> None:
    with pytest.raises(InputError, match="header size"):
        form_fields(_call(_part(b";" * 100_000, b"x") + b"--b--"))
    with pytest.raises(LimitError, match="form_header_bytes"):
        form_fields(_call(b"x", FORM + b";" * 60_000))


def test_fields_and_their_bytes_are_limited() -> None:
    with pytest.raises(LimitError, match="form_parts"):
        form_fields(_call(_part(b"a", b"") * 65 + b"--b--"))
    limits = Limits(form_text_bytes=10)
    with pytest.raises(LimitError, match="form_text_bytes"):
        form_fields(_call(_part(b"model", b"x" * 11) + b"--b--", limits=limits))
    assert len(form_fields(_call(_part(b"file", b"x" * 11) + b"--b--", limits=limits))["file"]) == 11
    with pytest.raises(InputError, match="not valid UTF-8"):
        text_fields({"model": b"\xff"})
