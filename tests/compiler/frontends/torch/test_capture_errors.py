"""Models that `torch.export` cannot capture: errors of three lines that name the line of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tensorwright
from compiler.errors import InputError, InvalidModelError, OptionError
from compiler.frontends.torch.dynamic_shapes import fixed_by, remaining_dimensions


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


class WrongCall(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape("all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "line", "hint"),
    [
        (WrongCall(), 'in forward: return x.reshape("all")', "torch.export.export"),
        (Branch(), "in forward: if x.sum() > 0:", "torch.where"),
        (Length(), "in forward: return torch.zeros(int(x.sum().item())) + 1", "torch.where"),
        (Foreign(), "in forward: return torch.from_numpy(x.numpy() + 1)", "torch.export.export"),
    ],
    ids=["call", "branch", "length", "numpy"],
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


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (torch.nn.Linear, "give an instance: Linear"),
        (torch.nn.Linear(8, 4).state_dict(), "load_state_dict"),
        (torch.jit.ScriptModule(), "the torch.nn.Module that it was made of"),
    ],
    ids=["class", "weights", "script"],
)
def test_what_is_no_module_says_what_to_give(source: object, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        tensorwright.compile(source, example_inputs=(torch.ones(8),))
    assert hint in str(caught.value.hint)


def test_examples_are_tensors() -> None:
    with pytest.raises(InputError, match="numpy array"):
        tensorwright.compile(torch.nn.Linear(8, 4).eval(), example_inputs=(np.zeros(8, np.float32),))


class LongEnough(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] > 8 else x


def test_the_range_that_a_dimension_needs_is_named() -> None:
    sizes = {"x": {1: torch.export.Dim("length", min=2, max=100)}}
    with pytest.raises(InvalidModelError, match="9 <= L") as caught:
        tensorwright.compile(LongEnough().eval(), example_inputs=(torch.ones(2, 9),), dynamic_shapes=sizes)
    assert "length = Dim('length', min=9, max=100)" in str(caught.value.hint)


class Halves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1] // 2, 2).sum(1) + x.view(-1, 2).sum()


class Loop(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x[:, 0]
        for column in x.unbind(1):
            total = total + column.tanh()
        return total


def test_a_multiple_that_a_dimension_needs_to_be_is_named_as_a_line_to_paste() -> None:
    sizes = {"x": {1: torch.export.Dim("length", min=2, max=100)}}
    with pytest.raises(InvalidModelError) as caught:
        tensorwright.compile(Halves().eval(), example_inputs=(torch.ones(3, 8),), dynamic_shapes=sizes)
    hint = str(caught.value.hint)
    lines = hint.partition("as follows: ")[2].split("; ")
    defined: dict[str, object] = {"Dim": torch.export.Dim}
    for line in lines:
        exec(line, defined)
    module = tensorwright.compile(
        Halves().eval(), example_inputs=(torch.ones(3, 8),), dynamic_shapes={"x": {1: defined["length"]}}
    )
    x = torch.randn(3, 12)
    np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], Halves()(x).numpy(), atol=1e-5)


def test_a_size_that_the_code_fixes_comes_with_the_call_for_one_size() -> None:
    sizes = {"x": {1: torch.export.Dim("length", min=2, max=100)}}
    with pytest.raises(InvalidModelError) as caught:
        tensorwright.compile(Loop().eval(), example_inputs=(torch.ones(3, 8),), dynamic_shapes=sizes)
    assert "tensorwright.compile(model, example_inputs=(torch.randn(3, 8),))" in str(caught.value.hint)


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_dynamic_size_of_one_in_the_example_is_named() -> None:
    sizes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    with pytest.raises(InvalidModelError, match="dimension 0 of x is dynamic, but 1 in the example") as caught:
        tensorwright.compile(Sum().eval(), example_inputs=(torch.ones(1, 3),), dynamic_shapes=sizes)
    assert "at least 2" in str(caught.value.hint)


class Fixed(torch.nn.Module):
    """Its first dimension is that of a weight."""

    def forward(self, x: torch.Tensor, *others: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
        return (x + torch.ones(5, 4)).sum() + others[0].sum() + named[:, None].sum()


@pytest.mark.parametrize("dim", [torch.export.Dim.DYNAMIC, torch.export.Dim("n")])
def test_dimensions_that_remain_are_a_line_to_paste(dim: object) -> None:
    size = torch.export.Dim.DYNAMIC
    shapes = {"x": {0: dim, 1: None}, "others": ({0: size},), "named": (size,)}
    model, tensors = Fixed().eval(), (torch.randn(5, 4), torch.randn(6, 2), torch.randn(3))

    def exported(dynamic: object) -> list[tuple[int | torch.SymInt, ...]]:
        program = torch.export.export(model, tensors[:2], {"named": tensors[2]}, dynamic_shapes=dynamic)  # type: ignore[arg-type]
        return [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"]

    with pytest.raises(RuntimeError, match="specialized") as raised:
        exported(shapes)
    line = remaining_dimensions(shapes, ["x", "others", "named"], fixed_by(str(raised.value)))
    assert line is not None
    found = exported(eval(line.removeprefix("dynamic_shapes=")))
    assert [isinstance(shape[0], int) for shape in found] == [True, False, False]
