"""The body of an inference request of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from compiler.errors import InputError
from compiler.serving.app.http import mapping, parse_json
from compiler.serving.app.tensors import read_inputs, wanted_outputs
from compiler.serving.limits import Limits
from compiler.serving.request import Array
from compiler.support.shown import shown

_NO_PARAMETERS: dict[str, Any] = {}


class Inference(NamedTuple):
    """The contents of an inference request.

    Attributes:
        inputs: by name.
        names: names of the outputs that it wants; None: all.
        as_bytes: whether an output is wanted as bytes, where the request says.
        parameters, identifier: as it has them.
    """

    inputs: dict[str, Array]
    names: tuple[str, ...] | None
    as_bytes: Mapping[str, bool]
    parameters: Mapping[str, Any]
    identifier: str


def read_inference(content: bytes | bytearray | memoryview, binary: memoryview, limits: Limits) -> Inference:
    """Read the JSON of a request, and the bytes of tensors behind it. Raises InputError."""
    body = mapping(parse_json(content), "the request")
    parameters = mapping(body.get("parameters") or _NO_PARAMETERS, "'parameters'")
    names, as_bytes = wanted_outputs(body.get("outputs"), limits)
    inputs = read_inputs(body.get("inputs"), binary, limits)
    identifier = body.get("id", "")
    if not isinstance(identifier, str):
        raise InputError(f"'id' must be a string, not {shown(identifier)}")
    return Inference(inputs, names, as_bytes, parameters, identifier)
