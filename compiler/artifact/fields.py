"""Records whose fields are checked by their annotations, as pydantic does, for those that every load of a module needs:
importing pydantic takes longer than loading a small module.

The methods have pydantic's names. Supported annotations are those that `_checker` lists, with the bounds `Range`,
`Length` and `Pattern` in `Annotated`. Numbers and texts are strict: a bool is no integer, an integer no text. Lists are
taken for tuples, and dicts for records, as JSON has nothing else.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, Union

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform

    JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | bool | int | float | None"
else:

    class JsonValue:
        """What JSON can express."""

    def dataclass_transform(**_):
        return lambda decorated: decorated


Checker = Callable[[Any], Any]
_Type = TypeVar("_Type", bound=type)
EMPTY: dict[str, Any] = {}
"""The default of a field that is a dict; each record has a copy."""
_MOST_DEPTH = 200  # of a JSON value


class FieldError(ValueError):
    """A field has a value that it must not have.

    Attributes:
        place: the names and numbers that lead to it, the outermost first.
        problem: what is wrong.
    """

    def __init__(self, problem: str, place: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{'.'.join(map(str, place))}: {problem}" if place else problem)
        self.problem, self.place = problem, place

    def within(self, name: str | int) -> FieldError:
        """The same, as seen from what holds it under that name."""
        return FieldError(self.problem, (name, *self.place))


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included; without infinities and NaN."""

    least: float = -math.inf
    most: float = math.inf

    def check(self, value: Any) -> None:
        """Raise FieldError unless it lies between them."""
        if not self.least <= value <= self.most or (isinstance(value, float) and not math.isfinite(value)):
            raise FieldError(f"{value!r} is not between {self.least} and {self.most}")


@dataclass(frozen=True)
class Length:
    """Bounds of the length of a text, tuple or list, both included."""

    least: int = 0
    most: float = math.inf

    def check(self, value: Any) -> None:
        """Raise FieldError unless it has such a length."""
        if not self.least <= len(value) <= self.most:
            raise FieldError(f"the length {len(value)} is not between {self.least} and {self.most}")


@dataclass(frozen=True)
class Pattern:
    """A regular expression that the whole of a text must match."""

    pattern: str

    def check(self, value: str) -> None:
        """Raise FieldError unless it does."""
        if re.fullmatch(self.pattern, value) is None:
            raise FieldError(f"{value[:100]!r} does not match {self.pattern}")


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Kind(type):
    """The type of models, for type checkers."""


class Model(metaclass=_Kind):
    """A frozen record with the fields that its class annotates; those with a value there are optional.

    Raises FieldError, when created, where a field is missing, unknown, or not what its annotation says.
    """

    _plan: ClassVar[dict[str, tuple[Checker, bool]]]  # by field: what checks it, and whether it must be given

    def __init__(self, **values: Any) -> None:
        plan, own = type(self)._fields(), self.__dict__
        for name, (check, is_required) in plan.items():
            if name in values:
                try:
                    own[name] = check(values[name])
                except FieldError as error:
                    raise error.within(name) from None
            elif is_required:
                raise FieldError("it is missing", (name,))
            else:
                default = getattr(type(self), name)
                own[name] = dict(default) if isinstance(default, Mapping) else default
        if len(values) > len(plan) or not plan.keys() >= values.keys():
            raise FieldError("there is no such field", (min(values.keys() - plan.keys()),))
        try:
            self._check()
        except FieldError:
            raise
        except ValueError as error:
            raise FieldError(str(error)) from error

    def _check(self) -> None:
        """Raise ValueError where fields do not fit each other."""

    @classmethod
    def _fields(cls) -> dict[str, tuple[Checker, bool]]:
        if "_plan" not in cls.__dict__:
            hints = typing.get_type_hints(cls, include_extras=True)
            cls._plan = {
                name: (_checker(kind), not hasattr(cls, name))
                for name, kind in hints.items()
                if typing.get_origin(kind) is not ClassVar
            }
        return cls._plan

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of the fields, in order."""
        return tuple(cls._fields())

    @classmethod
    def model_validate_json(cls, text: str | bytes | bytearray) -> Self:
        """Read one from JSON. Raises FieldError where it is none or does not fit."""
        return cls(**_mapping(parse_json(text)))

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields, which are not checked."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **update)
        return copy

    def model_dump(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The fields by name, records as dicts; for JSON, tuples as lists and None for numbers that are not finite."""
        return {name: _dumped(value, mode == "json") for name, value in self.__dict__.items()}

    def model_dump_json(self, indent: int | None = None) -> str:
        """As JSON."""
        separators = (",", ":") if indent is None else None
        return json.dumps(
            self.model_dump("json"), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({fields})"


def parse_json(text: str | bytes | bytearray) -> Any:
    """A JSON value. Raises FieldError where the text is none."""
    try:
        decoded = text if isinstance(text, str) else text.decode()
        return json.loads(decoded, parse_constant=_refused)
    except FieldError:
        raise
    except (ValueError, RecursionError) as error:
        raise FieldError(f"it is not JSON: {error}") from error


def checked(kind: object, value: Any) -> Any:
    """A value as a field with that annotation keeps it. Raises FieldError."""
    return _checker(kind)(value)


def _refused(constant: str) -> Any:
    raise FieldError(f"{constant} is not JSON")


def _dumped(value: Any, as_json: bool) -> Any:
    if isinstance(value, Model):
        return {name: _dumped(each, as_json) for name, each in value.__dict__.items()}
    if isinstance(value, dict):
        return {name: _dumped(each, as_json) for name, each in value.items()}
    if isinstance(value, tuple | list):
        items = [_dumped(each, as_json) for each in value]
        return items if as_json or isinstance(value, list) else tuple(items)
    if as_json and isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _checker(kind: Any) -> Checker:
    """What checks values of an annotation, and returns them as they are kept."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _bounded(_checker(arguments[0]), [each.check for each in arguments[1:]])
    if origin in (Union, types.UnionType):
        return _either([_checker(each) for each in arguments])
    if origin is Literal:
        return _one_of(arguments)
    if origin is tuple:
        return _tuple(arguments)
    if origin is list:
        return _list(_checker(arguments[0]))
    if origin is dict:
        return _dict(_checker(arguments[0]), _checker(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, Model):
        return lambda value: value if isinstance(value, kind) else kind(**_mapping(value))
    return _SIMPLE[kind]


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(f"{_shown(value)} is not an object")
    return value


def _bounded(check: Checker, bounds: list[Callable[[Any], None]]) -> Checker:
    def bounded(value: Any) -> Any:
        kept = check(value)
        for bound in bounds:
            bound(kept)
        return kept

    return bounded


def _either(checks: list[Checker]) -> Checker:
    def either(value: Any) -> Any:
        for check in checks[:-1]:
            try:
                return check(value)
            except FieldError:
                continue
        return checks[-1](value)

    return either


def _one_of(values: tuple[Any, ...]) -> Checker:
    def one_of(value: Any) -> Any:
        if not isinstance(value, str) or value not in values:
            raise FieldError(f"{_shown(value)} is none of {', '.join(map(repr, values))}")
        return value

    return one_of


def _items(value: Any, checks: Callable[[int], Checker]) -> list[Any]:
    kept: list[Any] = []
    for index, each in enumerate(value):
        try:
            kept.append(checks(index)(each))
        except FieldError as error:
            raise error.within(index) from None
    return kept


def _tuple(arguments: tuple[Any, ...]) -> Checker:
    repeated = arguments[-1] is Ellipsis
    checks = [_checker(each) for each in (arguments[:1] if repeated else arguments)]

    def tuple_of(value: Any) -> Any:
        if not isinstance(value, tuple | list) or not (repeated or len(value) == len(checks)):
            raise FieldError(f"{_shown(value)} is not a list" + ("" if repeated else f" of {len(checks)}"))
        return tuple(_items(value, (lambda index: checks[0]) if repeated else checks.__getitem__))

    return tuple_of


def _list(check: Checker) -> Checker:
    def list_of(value: Any) -> Any:
        if not isinstance(value, list):
            raise FieldError(f"{_shown(value)} is not a list")
        return _items(value, lambda index: check)

    return list_of


def _dict(key: Checker, check: Checker) -> Checker:
    def dict_of(value: Any) -> Any:
        kept = {}
        for name, each in _mapping(value).items():
            try:
                kept[key(name)] = check(each)
            except FieldError as error:
                raise error.within(str(name)[:100]) from None
        return kept

    return dict_of


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FieldError(f"{_shown(value)} is not a text")
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise FieldError(f"{_shown(value)} is not valid Unicode")
    return value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FieldError(f"{_shown(value)} is not an integer")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{_shown(value)} is not true or false")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, float | int) or isinstance(value, bool):
        raise FieldError(f"{_shown(value)} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise FieldError(f"{_shown(value)} is too large") from error


def _nothing(value: Any) -> None:
    if value is not None:
        raise FieldError(f"{_shown(value)} is not null")


def _json(value: Any, depth: int = 0) -> Any:
    if depth > _MOST_DEPTH:
        raise FieldError(f"it is nested more than {_MOST_DEPTH} deep")
    if isinstance(value, dict):
        return {_text(name): _json(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_json(each, depth + 1) for each in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise FieldError(f"{_shown(value)} is not a JSON value")


def _shown(value: object) -> str:
    """A value as text, short."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


_SIMPLE: dict[Any, Checker] = {
    str: _text,
    int: _integer,
    bool: _truth,
    float: _number,
    type(None): _nothing,
    JsonValue: _json,
}
