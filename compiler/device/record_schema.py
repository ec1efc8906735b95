"""The schema of a module's JSON for the C++ runtime, generated from the record classes with which Python reads it.

`python -m compiler.device.record_schema` writes `cpp/record_schema_table.h`, which `record_schema.cc` checks documents
against; a test compares the two. Checks that relate several fields are written in both languages (`__post_init__` of
the records, `cpp/manifest.cc`), and `tests.fuzz device` compares the verdicts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec import inspect

from compiler.artifact.fields import DIGEST_PATTERN
from compiler.artifact.manifest import DeviceRequirement, Manifest
from compiler.artifact.tensors import TensorEntry
from compiler.errors import InternalError

SCHEMA_FILE = Path(__file__).with_name("cpp") / "record_schema_table.h"
ROOTS: dict[str, Any] = {
    "kManifestSchema": Manifest,
    "kDeviceSchema": DeviceRequirement,
    "kTensorEntrySchema": TensorEntry,
}
_HEAD = "// Written by `python -m compiler.device.record_schema`: do not edit.\n"
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def record_schema() -> str:
    """The contents of `record_schema_table.h`: constants of the type `Schema` (`cpp/record_schema.h`). Raises
    InternalError if a record uses a type or a constraint that the table cannot express."""
    writer = _Writer()
    named = [f"const Schema& {name} = {writer.schema(inspect.type_info(kind))};" for name, kind in ROOTS.items()]
    return "\n".join([_HEAD, *writer.lines, *named, ""])


class _Writer:
    """C++ declarations, each before its first use, without duplicates."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[str, str] = {}

    def schema(self, kind: inspect.Type) -> str:
        """The name of the constant for a type."""
        match kind:
            case inspect.AnyType():
                return self._constant("kAnything")
            case inspect.NoneType():
                return self._constant("kNull")
            case inspect.BoolType():
                return self._constant("kTruth")
            case inspect.IntType(gt=None, lt=None, multiple_of=None, ge=least, le=most):
                return self._constant("kWhole", least, most)
            case inspect.FloatType(gt=None, lt=None, le=None, multiple_of=None, ge=None | 0 as least):
                return self._constant("kNumber", least)
            case inspect.StrType(pattern=None, min_length=least, max_length=most):
                return self._constant("kText", least or 0, most)
            case inspect.StrType(pattern=pattern) if pattern == DIGEST_PATTERN:
                return self._constant("kDigest")
            case inspect.LiteralType(values=values):
                choices = [_member(each, "nullptr") for each in sorted(map(str, values))]
                return self._constant("kChoice", members=choices)
            case inspect.UnionType(types=types):
                return self._constant("kEither", members=[_member(None, self.schema(each)) for each in types])
            case inspect.ListType(item_type=item, min_length=None, max_length=most):
                return self._constant("kList", 0, most, [_member(None, self.schema(item))])
            case inspect.VarTupleType(item_type=item, min_length=None, max_length=most):
                return self._constant("kList", 0, most, [_member(None, self.schema(item))])
            case inspect.TupleType(item_types=items):
                return self._constant("kTuple", members=[_member(None, self.schema(each)) for each in items])
            case inspect.DictType(key_type=key, value_type=value, min_length=None, max_length=None):
                return self._constant("kMap", members=[_member(None, self.schema(each)) for each in (key, value)])
            case inspect.StructType(fields=fields, array_like=False, forbid_unknown_fields=True, tag=None):
                members = [_member(each.encode_name, self.schema(each.type), each.required) for each in fields]
                return self._constant("kRecord", members=members)
        raise InternalError(f"the schema of the C++ runtime has no form for {kind!r}")

    def _constant(
        self, kind: str, least: float | None = None, most: int | None = None, members: list[str] | None = None
    ) -> str:
        low, high = (
            _number(_INT64_MIN if least is None else int(least)),
            _number(_INT64_MAX if most is None else most),
        )
        listed = self._named("Member", "[]", f"{{{', '.join(members)}}}") if members else "nullptr"
        content = f"{{Schema::Kind::{kind}, {low}, {high}, {listed}, {len(members or ())}}}"
        return self._named("Schema", "", content)

    def _named(self, kind: str, suffix: str, content: str) -> str:
        if content not in self._names:
            self._names[content] = f"k{kind}{len(self._names)}"
            self.lines.append(f"const {kind} {self._names[content]}{suffix} = {content};")
        return self._names[content]


def _member(key: str | None, schema: str, required: bool = False) -> str:
    reference = schema if schema == "nullptr" else f"&{schema}"
    return f"{{{'nullptr' if key is None else json.dumps(key)}, {reference}, {'true' if required else 'false'}}}"


def _number(value: int) -> str:
    return "INT64_MIN" if value == _INT64_MIN else "INT64_MAX" if value == _INT64_MAX else str(value)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(record_schema(), encoding="utf-8")
