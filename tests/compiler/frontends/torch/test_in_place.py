"""In-place operators: those without aliases are replaced in the graph, all others as torch does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class Scaled(torch.nn.Module):
    """Scales a view of a copy of its input in place."""

    def __init__(self, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        self.view(y).mul_(3)
        return y


WRITTEN_VIEWS = {
    "windows": lambda y: y.unfold(0, 2, 2),
    "element of each window": lambda y: y[:, 1:].unfold(-1, 2, 2)[..., 0],
    "windows as rows": lambda y: y.unfold(1, 2, 2).reshape(-1, 2),
    "uneven parts": lambda y: y.tensor_split(3)[0],
}


@pytest.mark.parametrize("view", WRITTEN_VIEWS.values(), ids=WRITTEN_VIEWS)
def test_elements_outside_a_written_view_keep_their_values_at_every_size(view: Any) -> None:
    model, shapes = Scaled(view).eval(), ({0: torch.export.Dim.AUTO},)
    module = compiler.compile(model, example_inputs=(torch.ones(7, 5),), dynamic_shapes=shapes)
    for rows in (4, 6, 7, 9):
        x = torch.randn(rows, 5)
        np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], model(x).numpy(), rtol=1e-6)


@pytest.mark.parametrize("source", [torch.mean, lambda x: x[:1, 0].int()], ids=["a number", "another type"])
def test_copied_values_are_broadcast(source: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Copied(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x + 1
            column = y[:, 1]
            column.copy_(source(x))
            return y, column * 2

    model, x = Copied().eval(), torch.randn(4, 3) * 9
    module = compiler.compile(model, example_inputs=(x,))
    for found, expected in zip(module.run({"x": x.numpy()}).values(), model(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_diagonals_of_views_are_filled() -> None:
    class Filled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x + 1
            return y, y[1:].fill_diagonal_(7) * 2, y.T.fill_diagonal_(3)

    model, x = Filled().eval(), torch.randn(7, 3)
    module = compiler.compile(model, example_inputs=(x,))
    for found, expected in zip(module.run({"x": x.numpy()}).values(), model(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_rows_of_a_transposed_matrix_are_filled() -> None:
    class Filled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x + 1
            return y, y.T.index_fill_(0, torch.tensor([0, 2]), 5.0) * 2

    model, x = Filled().eval(), torch.randn(4, 3)
    module = compiler.compile(model, example_inputs=(x,))
    for found, expected in zip(module.run({"x": x.numpy()}).values(), model(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_windows_with_gaps_are_written() -> None:
    model, x = Scaled(lambda y: y.unfold(0, 2, 3)).eval(), torch.randn(7, 2)
    found = compiler.compile(model, example_inputs=(x,)).run({"x": x.numpy()})["output_0"]
    np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-6)


@pytest.mark.parametrize(("size", "step", "rows"), [(3, 2, 7), (2, 3, 5)], ids=["overlapping", "incomplete gap"])
def test_windows_that_do_not_divide_the_axis_are_not_written(size: int, step: int, rows: int) -> None:
    model = Scaled(lambda y: y.unfold(0, size, step)).eval()
    with pytest.raises(UnsupportedModelError, match="writes through its windows"):
        compiler.compile(model, example_inputs=(torch.ones(rows, 2),))


def test_written_windows_of_an_exported_program_are_refused() -> None:
    program = torch.export.export(Scaled(WRITTEN_VIEWS["windows"]).eval(), (torch.ones(5, 4),))
    with pytest.raises(UnsupportedModelError, match="example_inputs"):
        compiler.compile(program)


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
