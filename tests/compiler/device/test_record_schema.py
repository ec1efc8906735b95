"""The C++ runtime's schema of a module's JSON is that of Python's records."""

from __future__ import annotations

from typing import Annotated

import pytest
from msgspec import Meta

from compiler.device import record_schema
from compiler.errors import InternalError


def test_the_table_is_that_of_the_records() -> None:
    written = record_schema.SCHEMA_FILE.read_text(encoding="utf-8")
    assert written == record_schema.record_schema(), "run `python -m compiler.device.record_schema`"


@pytest.mark.parametrize("kind", [Annotated[float, Meta(le=1)], Annotated[str, Meta(pattern="^a")], bytes])
def test_a_constraint_that_the_table_cannot_hold_is_refused(kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_schema, "ROOTS", {"kSomething": kind})
    with pytest.raises(InternalError, match="has no form"):
        record_schema.record_schema()
