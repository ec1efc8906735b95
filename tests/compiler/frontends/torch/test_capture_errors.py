"""Models that `torch.export` stops at: three lines, which name the line of the model."""

from __future__ import annotations

import pytest
import torch

import tensorwright
from compiler.errors import InvalidModelError


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class Length(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(x.sum().item())) + 1


class Foreign(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() + 1)


@pytest.mark.parametrize(
    ("model", "line", "hint"),
    [
        (Branch(), "in forward: if x.sum() > 0:", "torch.where"),
        (Length(), "in forward: return torch.zeros(int(x.sum().item())) + 1", "torch.where"),
        (Foreign(), "in forward: return torch.from_numpy(x.numpy() + 1)", "torch.export.export"),
    ],
    ids=["branch", "length", "numpy"],
)
def test_the_line_of_the_model_is_named(
    model: torch.nn.Module, line: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidModelError) as caught:
        tensorwright.compile(model.eval(), example_inputs=(torch.ones(4),))
    text = str(caught.value)
    assert len(text.splitlines()) == 3, text
    assert line in text.splitlines()[1]
    assert __file__ in text
    assert hint in str(caught.value.hint)
    captured = capfd.readouterr()
    assert "def forward" not in captured.out + captured.err
