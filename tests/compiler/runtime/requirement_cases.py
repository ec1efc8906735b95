"""The table of cases that the checks of inputs are tested with, in Python and in C++ (`requirement_cases.json`).

A case has the shapes that the manifest announces (of inputs `a`, `b`: float32), its requirements and indices, what is
given (the shapes of `a` and `b`, the values of `i`: int64 and `u`: uint8), and the message that must come; null where
the module runs.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler.artifact import Artifact, artifact_bytes
from compiler.artifact.manifest import Manifest
from tests.compiler.runtime.building import build_artifact

from tvm import relax  # isort: skip  (after `building`, which loads it without torch)

Case = dict[str, Any]
CASES: list[Case] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_SHAPES: dict[str, list[int | str]] = {"a": ["p", "q"], "b": ["r", "s"], "i": ["t"], "u": ["v"]}
_GIVEN: dict[str, list[int]] = {"a": [2, 4], "b": [2, 4], "i": [0], "u": [0]}


@cache
def _artifact() -> Artifact:
    return build_artifact(
        [("a", ("p", "q"), "float32"), ("b", ("r", "s"), "float32"), ("i", ("t",), "int64"), ("u", ("v",), "uint8")],
        [("y", ("p", "q"), "float32")],
        lambda a, b, i, u: [relax.op.add(a, a)],
    )


def module_of(case: Case) -> bytes:
    """Save a module with the case's manifest."""
    from dataclasses import replace

    described = json.loads(msgspec.json.encode(_artifact().manifest))
    shapes = {**_SHAPES, **case.get("shapes", {})}
    for tensor in described["inputs"]:
        tensor["shape"] = shapes[tensor["name"]]
    described |= {"requirements": case.get("requirements", []), "indices": case.get("indices", [])}
    manifest = msgspec.convert(described, Manifest)
    return artifact_bytes(replace(_artifact(), manifest=manifest))


def inputs_of(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of a case."""
    given = {**_GIVEN, **case.get("given", {})}
    arrays = {name: np.ones(given[name], np.float32) for name in ("a", "b")}
    return {**arrays, "i": np.array(given["i"], np.int64), "u": np.array(given["u"], np.uint8)}
