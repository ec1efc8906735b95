"""`torch.compile(model, backend="tensorwright")` against eager torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from compiler.errors import OptionError


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)).eval()


def test_backend_is_found_by_name() -> None:
    assert "tensorwright" in torch._dynamo.list_backends()


def test_module_equals_eager_at_several_sizes() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright")
    with torch.no_grad():
        for batch in (1, 4, 7):
            x = torch.randn(batch, 6)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_changed_parameters_are_seen() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright")
    x = torch.randn(2, 6)
    with torch.no_grad():
        compiled(x)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_function_with_several_outputs_and_a_number() -> None:
    def function(x: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        return x * scale, x.softmax(dim=-1)

    compiled = torch.compile(function, backend="tensorwright")
    x = torch.randn(3, 5)
    for scale in (2.0, 3.0):
        torch.testing.assert_close(compiled(x, scale), function(x, scale), rtol=1e-5, atol=1e-6)


def test_recording_gradients_is_refused() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright")
    with pytest.raises(OptionError, match="no_grad"):
        compiled(torch.randn(1, 6))


def test_options_reach_the_compiler() -> None:
    compiled = torch.compile(network(), backend="tensorwright", options={"target": "x86-64-v9"})
    with torch.no_grad(), pytest.raises(Exception, match="x86-64-v9"):
        compiled(torch.randn(1, 6))
