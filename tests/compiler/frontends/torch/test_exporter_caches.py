"""Caches that are kept between exports, and those that are not."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import sympy
import torch
from torch.onnx._internal.exporter import _registration, _schemas
from torch.utils._sympy.functions import FloorDiv

from compiler.frontends.torch.capture import exported_program
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


def test_symbols_of_a_size_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (sympy.Symbol(f"cached_{each}", integer=True, positive=True) for each in "ab")
    size, before = FloorDiv(a + 3, 2) * b + 1, vars(sympy.Basic)["free_symbols"]
    asked: list[Any] = []

    def free_symbols(expression: Any) -> Any:
        asked.append(expression)
        return before.fget(expression)

    monkeypatch.setattr(sympy.Basic, "free_symbols", property(free_symbols))
    with patched_exporter():
        found = size.free_symbols
        found.clear()  # the caller's own
        count = len(asked)
        assert size.free_symbols == {a, b}
        assert not size.is_number
        assert sympy.Integer(3).is_number
        assert len(asked) == count > 0
    monkeypatch.undo()
    assert vars(sympy.Basic)["free_symbols"] is before


def test_quotients_of_sizes_are_divided_term_by_term(monkeypatch: pytest.MonkeyPatch) -> None:
    def simplify(_: Any) -> Any:
        raise AssertionError("takes minutes for long sizes")

    monkeypatch.setattr(sympy, "simplify", simplify)
    a, b, c, d = (sympy.Symbol(f"divided_{each}", integer=True, positive=True) for each in "abcd")
    with patched_exporter():
        assert FloorDiv(a * b + 6 * a * c, 2 * a * d) == FloorDiv(b + 6 * c, 2 * d)
        assert FloorDiv(a * b, a * c) == FloorDiv(b, c)


def test_decompositions_do_not_trace_guards_again() -> None:
    class Rows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)

    program = torch.export.export(Rows(), (torch.randn(4, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert hasattr(program.module(), "_guards_fn")
    with patched_exporter():
        assert not hasattr(program.module(), "_guards_fn")


def test_contiguous_tensors_are_viewed_without_comparing_their_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, height, width, channels = x.shape
            x = x.view(batch, height // 4, 4, width // 4, 4, channels).transpose(2, 3).reshape(-1, 16, channels)
            return x.view(batch, -1, channels)

    def compare(*_: Any) -> Any:
        raise AssertionError("takes minutes for long sizes, and guards each comparison")

    monkeypatch.setattr("torch._refs._reshape_view_helper_core_alg", compare)
    dynamic = (dict.fromkeys(range(3), torch.export.Dim.DYNAMIC),)
    program = exported_program(Windows().eval(), (torch.randn(2, 8, 12, 3),), dynamic)
    x = torch.randn(3, 16, 16, 3)
    assert torch.equal(program.module()(x), Windows()(x))
