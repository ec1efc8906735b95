"""A folder of variants: modules of one model that differ in precision, size or architecture, with the cost of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compiler.artifact.storage import write_atomically
from compiler.errors import ArtifactError, StorageError

VARIANTS_FILE = "variants.json"
_MAX_BYTES = 1 << 20


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class VariantEntry(_Model):
    """One variant.

    Attributes:
        file: the module's file, in the same folder.
        identity: the module's digest (`module_identity`), to which the following numbers apply.
        score: the variant's score by the measure used for comparison; higher is better.
        accuracy: the score relative to the reference variant's score.
        cost_ms: processor milliseconds per row, measured on the machine that wrote the folder.
        bytes: size of its parameters in bytes.
        made: how it was created, as text.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
    file: Annotated[str, Field(max_length=255)]
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    score: Annotated[float, Field(allow_inf_nan=False)]
    accuracy: Annotated[float, Field(allow_inf_nan=False)]
    cost_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    bytes: Annotated[int, Field(ge=0)]
    made: Annotated[str, Field(max_length=4096)] = ""

    @field_validator("file")
    @classmethod
    def _is_in_the_folder(cls, value: str) -> str:
        if Path(value).name != value or value in ("", ".", ".."):
            raise ValueError(f"{value!r} is not a file of the folder")
        return value


class VariantIndex(_Model):
    """Contents of `variants.json`.

    Attributes:
        reference: the name of the variant that the others are compared with.
        measure: what the score measures, as text.
    """

    format_version: Literal[1] = 1
    model_name: str
    reference: str
    measure: str
    variants: Annotated[tuple[VariantEntry, ...], Field(min_length=1, max_length=64, strict=False)]

    @model_validator(mode="after")
    def _consistent(self) -> VariantIndex:
        names = [each.name for each in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("two variants have the same name")
        if self.reference not in names:
            raise ValueError(f"the reference {self.reference!r} is not a variant")
        return self


def read_variants(folder: str | os.PathLike[str]) -> VariantIndex:
    """Read the index of a folder. Raises StorageError if it cannot be read, and ArtifactError if the file is not an
    index of variants."""
    path = Path(folder) / VARIANTS_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error}", "`tensorwright compress --variants` writes one"
        ) from error
    if len(content) > _MAX_BYTES:
        raise ArtifactError(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        return VariantIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path} is not an index of variants: {where}: {first['msg']}") from error


def write_index(folder: str | os.PathLike[str], index: VariantIndex) -> None:
    """Write the index of a folder, completely or not at all. Raises StorageError."""
    content = index.model_dump_json(indent=1) + "\n"
    write_atomically(Path(folder) / VARIANTS_FILE, [content.encode()])
