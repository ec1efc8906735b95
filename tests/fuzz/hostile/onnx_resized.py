"""ONNX models whose first input gets invalid shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.fuzz.hostile.catalog import Feeds, Onnx, floats, node

Shapes = list[tuple[int, ...]]


def resized(
    operator: str,
    nodes: onnx.NodeProto | list[onnx.NodeProto],
    good: Feeds,
    shapes: Shapes,
    **options: Any,
) -> Onnx:
    """A model whose first input gets these shapes; the other inputs are unchanged."""
    name, array = next(iter(good.items()))
    hostile = [(f"{name}{list(shape)}", {name: np.zeros(shape, array.dtype)}) for shape in shapes]
    return Onnx(operator, nodes if isinstance(nodes, list) else [nodes], good, hostile, **options)


def one(operator: str, inputs: str, good: tuple[int, ...], shapes: Shapes, **options: Any) -> Onnx:
    """A node with inputs `x ...`; options are attributes and constants."""
    known = {"constants", "outputs", "opset", "dims", "hidden", "domains"}
    attributes = {name: value for name, value in options.items() if name not in known | {"label"}}
    rest = {name: value for name, value in options.items() if name in known}
    names = ["" if each == "_" else each for each in inputs.split()]
    outputs = list(rest.get("outputs", {"y": None}))
    domain = rest.get("domains", [""])[0]
    label = f"{operator} {options['label']}" if "label" in options else operator
    return resized(
        label, node(operator, names, outputs, domain=domain, **attributes), {"x": floats(*good)}, shapes, **rest
    )
