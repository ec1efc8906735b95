"""Operators that ONNX lacks, in traced programs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compiler.errors import UnsupportedModelError
from compiler.frontends.source import import_model


class _Factors(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.linalg.qr(x))


def test_a_version_of_torch_without_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.onnx, "ops")
    with pytest.raises(UnsupportedModelError, match=r"QR .*needs torch 2\.8 or later"):
        import_model(_Factors().eval(), example_inputs=(torch.randn(5, 4),))
