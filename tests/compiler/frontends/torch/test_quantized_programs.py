"""Programs quantized by torchao: results equal torch's, and products are computed in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import compiler
from examples.train_quantized import INTEGER_RULES

_X = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(0))


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 32)).eval()


def _same(net: nn.Module, data: torch.Tensor) -> compiler.Module:
    """The compiled program, whose numbers are torch's."""
    with torch.no_grad():
        module = compiler.compile(torch.export.export(net, (data,)), threads=1)
        wanted = net(data).numpy()
    (found,) = module.run([data.numpy()]).values()
    assert len(np.unique(wanted)) > 5
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
    return module


def _products_of_bytes(module: compiler.Module) -> int:
    return sum(each.rule in INTEGER_RULES for each in module.manifest.kernels)


@pytest.mark.parametrize("options", [{}, {"reduce_range": True}, {"is_dynamic": True}])
@pytest.mark.parametrize("times", [1.0, 3.0, 1e-4])
def test_export_quantization(options: dict[str, Any], times: float) -> None:
    """Data beyond what was calibrated is limited to the range, which "reduce_range" makes narrower than the type; data
    of next to no range has the smallest scale."""
    # Takes as long to import as a tenth of all that the test files import: it loads TorchInductor's lowering.
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(**options)
    exported = torch.export.export(_net(), (_X,)).module()
    prepared: Any = prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(config))
    prepared(_X)
    assert _products_of_bytes(_same(convert_pt2e(prepared), _X * times)) == 2


@pytest.mark.parametrize("activations", [True, False])
def test_quantized_tensors(activations: bool) -> None:
    net = _net()
    quantize_(net, Int8DynamicActivationInt8WeightConfig() if activations else Int8WeightOnlyConfig())
    assert _products_of_bytes(_same(net, _X)) == (2 if activations else 0)
