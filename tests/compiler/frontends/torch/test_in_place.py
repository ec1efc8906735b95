"""In-place operators: those without aliases are replaced in the graph, all others as torch does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import compiler
from compiler.errors import UnsupportedModelError
from compiler.frontends.torch.in_place import write_out_activations


class Net(torch.nn.Module):
    """In-place operators of values of their own, and on a view and on a value that is read before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu_(self.norm(self.conv(x)))
        z = self.conv(x)
        z += y
        z = torch.nn.functional.hardswish(z, inplace=True)
        z = torch.nn.functional.dropout(z.flatten(2), training=False, inplace=True)
        viewed = self.conv(x)
        part = viewed[:, :2]
        part.mul_(2.0)
        kept = self.norm(y)
        before = kept * 3
        kept.sigmoid_()
        return y, z, viewed, kept, before


def test_written_values_that_others_read_are_left_to_torch() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 5, 6)
    program = torch.export.export(net, (x,))
    write_out_activations(program)
    names = [node.target.name() for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in names if "_." in name] == ["aten::mul_.Tensor"]
    assert [name for name in names if name.endswith("_")] == ["aten::sigmoid_"]
    module = compiler.compile(net, example_inputs=(x,))
    for found, expected in zip(module.run({"x": x.numpy()}).values(), net(x), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


class Whole(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:] = x[0:]
        y[:, 1] = x[:, 0] + 1
        return y


def test_a_part_that_is_all_of_a_dynamic_axis_is_neither_copied_nor_scattered() -> None:
    shapes = ({0: torch.export.Dim("n")},)
    module = compiler.compile(Whole().eval(), example_inputs=(torch.ones(3, 2),), dynamic_shapes=shapes, threads=1)
    assert not any(word in each.kernel for each in module.manifest.kernels for word in ("scatter", "arange"))
    x = np.random.default_rng(0).standard_normal((5, 2), np.float32)
    np.testing.assert_array_equal(module(x), np.stack([x[:, 0], x[:, 0] + 1], 1))


class Elements(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.unbind(1)[1].neg_()
        first, *_ = torch.unbind(y, -1)
        first.mul_(3)
        return y


def test_written_elements_leave_the_sizes_dynamic() -> None:
    shapes = ({0: torch.export.Dim("n")},)
    module = compiler.compile(Elements().eval(), example_inputs=(torch.ones(3, 2, 4),), dynamic_shapes=shapes)
    x = np.random.default_rng(0).standard_normal((5, 2, 4), np.float32)
    np.testing.assert_array_equal(module(x), Elements()(torch.from_numpy(x)).numpy())


class Gradient(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.func.jacrev(lambda each: each.sum(-1) ** 2)(x)


def test_a_program_that_torch_cannot_trace_again_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="RuntimeError"):
        compiler.compile(Gradient().eval(), example_inputs=(torch.ones(3),))
