"""Properties of the JSON reader that modules rely on."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from msgspec import Meta, field

from compiler.artifact.fields import FieldError, Record, checked, decode, encode
from compiler.artifact.manifest import JsonValue, TargetDescription


class Inner(Record, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=4)]
    sizes: tuple[int, int] = (1, 2)


class Outer(Record, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=0, le=2**62)]
    rate: Annotated[float, Meta(ge=0)] = 0.5
    flag: bool = False
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{2}\Z")] = "00"
    inner: tuple[Inner, ...] = ()
    size: Annotated[int, Meta(ge=0)] | Annotated[str, Meta(max_length=3)] = 0
    values: Annotated[tuple[bool | int | float, ...], Meta(max_length=3)] | None = None
    more: dict[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count == 7:
            raise ValueError("no sevens")


def test_records_are_written_and_read_back() -> None:
    text = '{"count":3,"rate":1e-05,"flag":true,"digest":"f0","inner":[{"name":"yy","sizes":[3,4]}],"size":"n",'
    text += '"values":[true,1,1.5],"more":{"é":[1,null,{"b":2.0}]}}'
    record = decode(text.encode(), Outer)
    assert record.inner == (Inner(name="yy", sizes=(3, 4)),)
    assert [type(each) for each in record.values or ()] == [bool, int, float]
    assert encode(record) == text.encode()
    assert checked(record) == record


def test_subclasses_of_plain_types_are_taken() -> None:
    class Text(str):  # as TVM's strings are
        pass

    record = checked(Inner(name=Text("x")))
    assert record == Inner(name="x")
    assert type(record.name) is str


@pytest.mark.parametrize(
    "fields",
    [
        *('"count": -1', f'"count": {10**30}', '"count": true', '"count": 1.0', '"count": "3"', '"count": null', ""),
        *('"count": 1, "unknown": 1', '"count": 7', f'"count": {"1" * 5000}', '"count": 1} x'),
        *('"rate": -0.1', '"rate": "1"', '"rate": true', '"rate": NaN', '"rate": 1e999', f'"rate": {10**400}'),
        *('"flag": 1', '"digest": "0"', '"digest": "00\\n"', '"digest": "x00"', '"inner": {"name": "x"}'),
        *('"inner": [{"name": ""}]', '"inner": [{"name": "x", "sizes": [1]}]', '"inner": ["x"]'),
        *('"size": -1', '"size": "abcd"', '"size": 1.0', '"values": [1, 2, 3, 4]', '"values": ["1"]'),
        *('"more": [1]', '"more": {"a": 1e999}', '"more": {"a": "\\ud800"}', '"more": {"a": Infinity}'),
        '"more": {"a": %s}' % ("[" * 100_000 + "]" * 100_000),
    ],
    ids=lambda fields: fields[:30],
)
def test_what_does_not_fit_is_refused(fields: str) -> None:
    text = f"{{{fields}}}" if "count" in fields or not fields else f'{{"count": 1, {fields}}}'
    with pytest.raises(FieldError):
        decode(text.encode(), Outer)


@pytest.mark.parametrize("text", [b"", b"3", b"[3]", b'{"count": 3', b"\xff", b'{"count": 1, "more": {"\xff": 1}}'])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(FieldError):
        decode(text, Outer)


def test_values_nested_too_deep_are_refused() -> None:
    text = '{"name":"a","architecture":"b","details":{"c":%s}}'
    assert decode((text % "[[]]").encode(), TargetDescription).details == {"c": [[]]}
    with pytest.raises(FieldError, match="too deep"):
        decode((text % ("[" * 300 + "]" * 300)).encode(), TargetDescription)


def test_errors_name_the_place() -> None:
    with pytest.raises(FieldError, match=r"Expected `int`, got `str` - at `\$\.inner\[1\]\.sizes\[0\]`"):
        decode(b'{"count": 1, "inner": [{"name": "x"}, {"name": "y", "sizes": ["a", 2]}]}', Outer)
    with pytest.raises(FieldError, match="required field `count`"):
        decode(b"{}", Outer)
    with pytest.raises(FieldError, match="no sevens"):
        decode(b'{"count": 7}', Outer)


@pytest.mark.parametrize(
    "fields",
    [{"count": -1}, {"count": "1"}, {"digest": "\ud800"}, {"rate": float("nan")}, {"rate": float("inf")}],
    ids=str,
)
def test_records_that_could_not_be_read_back_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        checked(Outer(**{"count": 1, **fields}))
