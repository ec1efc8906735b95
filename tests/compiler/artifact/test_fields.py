"""Records with checked fields, beside pydantic's of the same annotations."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compiler.artifact.fields import EMPTY, FieldError, JsonValue, Length, Model, Pattern, Range, checked


class Inner(Model):
    name: Annotated[str, Length(1, 4)]
    sizes: tuple[int, int] = (1, 2)


class Outer(Model):
    count: Annotated[int, Range(0, 9)]
    rate: Annotated[float, Range(0)] = 0.5
    flag: bool = False
    kind: Literal["a", "b"] | None = None
    digest: Annotated[str, Pattern("[0-9a-f]{2}")] = "00"
    inner: tuple[Inner, ...] = ()
    values: Annotated[tuple[bool | int | float, ...], Length(most=3)] | None = None
    more: dict[str, JsonValue] = EMPTY

    def _check(self) -> None:
        if self.count == 7:
            raise ValueError("no sevens")


class TheirInner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: Annotated[str, Field(min_length=1, max_length=4)]
    sizes: Annotated[tuple[int, int], Field(strict=False)] = (1, 2)


class TheirOuter(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    count: Annotated[int, Field(ge=0, le=9)]
    rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    flag: bool = False
    kind: Literal["a", "b"] | None = None
    digest: Annotated[str, Field(pattern="^[0-9a-f]{2}$")] = "00"
    inner: Annotated[tuple[TheirInner, ...], Field(strict=False)] = ()
    values: Annotated[tuple[bool | int | float, ...], Field(strict=False, max_length=3)] | None = None
    more: dict[str, Any] = {}


CASES = [
    {"count": 3},
    {"count": 3, "rate": 2, "flag": True, "kind": "b", "digest": "f0", "more": {"a": [1, None, {"b": "c"}]}},
    {"count": 0, "inner": [{"name": "x"}, {"name": "yy", "sizes": [3, 4]}], "values": [True, 1, 1.5]},
    {},
    {"count": -1},
    {"count": 10},
    {"count": True},
    {"count": 1.5},
    {"count": "3"},
    {"count": None},
    {"count": 3, "unknown": 1},
    {"count": 3, "rate": -0.1},
    {"count": 3, "rate": "1"},
    {"count": 3, "rate": True},
    {"count": 3, "flag": 1},
    {"count": 3, "kind": "c"},
    {"count": 3, "kind": 1},
    {"count": 3, "digest": "0"},
    {"count": 3, "digest": "00\n"},
    {"count": 3, "digest": 0},
    {"count": 3, "inner": {"name": "x"}},
    {"count": 3, "inner": [{"name": ""}]},
    {"count": 3, "inner": [{"name": "x", "sizes": [1]}]},
    {"count": 3, "inner": [{"name": "x", "sizes": [1, 2.5]}]},
    {"count": 3, "inner": ["x"]},
    {"count": 3, "values": [1, 2, 3, 4]},
    {"count": 3, "values": ["1"]},
    {"count": 3, "more": [1]},
    [3],
    3,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_take_and_refuse_what_pydantic_does(case: Any) -> None:
    text = json.dumps(case)
    try:
        expected = TheirOuter.model_validate_json(text)
    except ValidationError:
        with pytest.raises(FieldError):
            Outer.model_validate_json(text)
        return
    found = Outer.model_validate_json(text)
    assert found.model_dump_json() == expected.model_dump_json()
    assert found.model_dump() == expected.model_dump()
    assert Outer.model_validate_json(found.model_dump_json()) == found


def test_what_only_texts_can_hold_is_refused() -> None:
    deep = "[" * 300 + "]" * 300
    texts: list[str | bytes] = ['{"count": 3, "rate": NaN}', '{"count": 3, "more": {"a": "\\ud800"}}', '{"count": 3']
    for text in (*texts, b"\xff", "[" * 100_000, f'{{"count": 3, "more": {{"a": {deep}}}}}'):
        with pytest.raises(FieldError):
            Outer.model_validate_json(text)


def test_errors_name_the_place() -> None:
    with pytest.raises(FieldError, match=r"^inner\.1\.sizes\.0: 'a' is not an integer$"):
        Outer(count=1, inner=[{"name": "x"}, {"name": "y", "sizes": ["a", 2]}])  # type: ignore[arg-type]
    with pytest.raises(FieldError, match=r"^count: it is missing$"):
        Outer()  # type: ignore[call-arg]
    with pytest.raises(FieldError, match="no sevens"):
        Outer(count=7)
    with pytest.raises(FieldError, match=r"^1: "):
        checked(tuple[int, ...], [1, "2"])


def test_records_are_values() -> None:
    one, other = Outer(count=1), Outer(count=2)
    assert one != other
    assert one.model_copy(update={"count": 2}) == other
    assert one.more is not other.more
    assert hash(Inner(name="x")) == hash(Inner(name="x"))
    assert repr(Inner(name="x")) == "Inner(name='x', sizes=(1, 2))"
    with pytest.raises(AttributeError, match="frozen"):
        one.count = 2  # type: ignore[misc]
