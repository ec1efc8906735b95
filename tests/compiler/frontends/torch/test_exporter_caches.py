"""Caches that are kept between exports, and those that are not."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.onnx._internal.exporter import _registration, _schemas

from compiler.frontends.torch.exporter_patches import patched_exporter


def test_conversions_are_read_once_and_torch_is_left_as_it_was() -> None:
    exporter: Any = vars(_registration)["onnxscript_apis"]

    def replaced() -> list[object]:
        utils: Any = torch._export.utils
        return [exporter.get_torchlib_ops, utils._materialize_cpp_cia_ops, vars(torch._ops)["Callable"]]

    before = replaced()
    with patched_exporter():
        found = exporter.get_torchlib_ops()
    with patched_exporter():
        assert exporter.get_torchlib_ops() is found
    assert replaced() == before


def test_operators_are_registered_without_evaluating_annotations() -> None:
    with patched_exporter():
        annotation: Any = vars(torch._ops)["Callable"]
    assert annotation[[int], int] is annotation
    assert isinstance(len, annotation)
    assert not isinstance(1, annotation)


def test_a_function_is_described_once_and_not_kept_alive() -> None:
    def conversion(x: Any) -> Any:
        return x

    with patched_exporter():
        signatures = [_schemas.op_signature_from_function(conversion, "own", name) for name in ("one", "two", "one")]
    assert [each.name for each in signatures] == ["one", "two", "one"]
    assert signatures[0] is signatures[2]
    function = weakref.ref(conversion)
    del conversion
    assert function() is None
