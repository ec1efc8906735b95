"""Indices and sizes that PyTorch refuses are refused before a run; others give PyTorch's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import compiler
from compiler.artifact import TensorDescription
from compiler.driver.manifest_entries import requirements
from compiler.errors import InputError
from compiler.frontends.source import import_model
from compiler.runtime.inputs import RequirementChecker


class Sized(nn.Module):
    """A part, a reflected margin and the largest elements of rows."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.narrow(1, 1, 3), functional.pad(x, (0, 4), "reflect"), x.amax(1), functional.glu(x, 0)


class Indexed(nn.Module):
    """An embedding; rows by a tensor that may count from the end; elements along an axis; repeated rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def forward(self, words: Tensor, x: Tensor, rows: Tensor, places: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        words = words.reshape(-1).to(torch.int64)
        return self.table(words), x[rows], x.gather(1, places), x.repeat_interleave(counts, 0)


MODEL = Indexed().eval()
GOOD: dict[str, Any] = {
    "words": np.array([[0, 7, 3]], np.int32),
    "x": np.arange(15, dtype=np.float32).reshape(3, 5),
    "rows": np.array([-3, 2]),
    "places": np.array([[0, 4], [1, 2]]),
    "counts": np.array([1, 0, 2]),
}


def source() -> dict[str, Any]:
    auto: Any = Dim.AUTO
    shapes = {"words": {1: auto}, "x": {0: auto, 1: auto}, "rows": {0: auto}, "places": {1: auto}, "counts": {0: auto}}
    examples = tuple(torch.from_numpy(GOOD[name]) for name in GOOD)
    return {"source": MODEL, "example_inputs": examples, "dynamic_shapes": shapes}


@pytest.fixture(scope="module")
def module() -> compiler.Module:
    return compiler.compile(**source(), reference_inputs=GOOD, threads=1)


def test_good_indices_give_the_results_of_torch(module: compiler.Module) -> None:
    with torch.no_grad():
        wanted = MODEL(*map(torch.from_numpy, GOOD.values()))
    for one, other in zip(module.run(GOOD).values(), wanted, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("words", [[0, 8, 0]], r"embedding 'table': .* the value 8, outside of \[0, 8\)"),
        ("words", [[0, -1, 0]], r"embedding 'table': .* the value -1, outside of \[0, 8\)"),
        ("rows", [3, 0], r"index 'index': .* the index 3, outside of \[-3, 3\)"),
        ("places", [[0, 0], [0, -1]], r"gather 'gather': .* the value -1, outside of \[0, 5\)"),
        ("counts", [1, -1, 1], r"repeat_interleave .* the value -1, outside of \[0, "),
    ],
)
def test_what_torch_refuses_is_refused_before_a_run(
    module: compiler.Module, name: str, values: Any, message: str
) -> None:
    feeds = {**GOOD, name: np.array(values, GOOD[name].dtype)}
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        MODEL(*map(torch.from_numpy, feeds.values()))
    with pytest.raises(InputError, match=message):
        module.run(feeds)


def test_a_size_that_is_fixed_is_a_number_and_inputs_that_are_fixed_have_no_range() -> None:
    model = import_model(**source(), shapes={"x": (3, 5)}, constants={"words": GOOD["words"]})
    found = {(each.input, each.size, each.least) for each in model.indices}
    assert {("rows", "3", None), ("places", "5", "0")} <= found
    assert "words" not in {name for name, _, _ in found}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4), r"pad 'pad': \w+ = 4 must be at least 5"),
        ((2, 0), r"narrow 'narrow': \w+ = 0 must be at least 4"),
        ((3, 8), r"glu 'glu': \(?\w+ % 2\)? = 1 must equal 0"),
    ],
)
def test_sizes_that_torch_refuses_are_refused_before_a_run(shape: tuple[int, ...], message: str) -> None:
    dynamic = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
    model = import_model(Sized().eval(), example_inputs=(torch.ones(4, 8),), dynamic_shapes=dynamic)
    inputs = [TensorDescription(name=each.name, shape=each.shape, dtype=each.dtype) for each in model.inputs]
    checker = RequirementChecker(inputs, **requirements(model))
    sizes = dict(zip(map(str, model.inputs[0].shape), shape, strict=True))
    checker.check(dict.fromkeys(sizes, 8), [None])
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        Sized()(torch.ones(shape))
    with pytest.raises(InputError, match=message):
        checker.check(sizes, [None])


def test_sizes_that_the_model_fixes_are_numbers() -> None:
    dynamic = {"input": {0: Dim.AUTO, 1: Dim.AUTO}}
    model = import_model(nn.Linear(8, 4).eval(), example_inputs=(torch.ones(3, 8),), dynamic_shapes=dynamic)
    assert model.inputs[0].shape[1] == 8


class _Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[0:7] * 2


@pytest.mark.parametrize("rows", [Dim("n", max=6), Dim.DYNAMIC])
def test_the_range_that_torch_captures_a_slice_for_is_required(rows: object) -> None:
    module = compiler.compile(_Rows().eval(), example_inputs=(torch.randn(6, 3),), dynamic_shapes=({0: rows},))
    x = torch.randn(4, 3)
    np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], (x * 2).numpy())
    with pytest.raises(InputError, match="captured the model for"):
        module.run({"x": np.zeros((11, 3), np.float32)})


class _Sum(nn.Module):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return x.sum(1) + z.sum(0)


@pytest.mark.parametrize(
    ("first", "second", "reason"), [(17, 18, "must equal 0"), (19, 24, "must equal"), (7, 8, "at least 3")]
)
def test_dimensions_of_one_symbol_agree(first: int, second: int, reason: str) -> None:
    size = Dim("h", min=3, max=32)
    shapes = ({1: 4 * size - 1}, {0: 4 * size})
    example = (torch.randn(3, 15), torch.randn(16, 3))
    module = compiler.compile(_Sum().eval(), example_inputs=example, dynamic_shapes=shapes)
    x, z = torch.randn(3, 27), torch.randn(28, 3)
    expected = _Sum()(x, z).numpy()
    np.testing.assert_allclose(module.run({"x": x.numpy(), "z": z.numpy()})["output_0"], expected, atol=1e-4)
    with pytest.raises(InputError, match=reason):
        module.run({"x": np.zeros((3, first), np.float32), "z": np.zeros((second, 3), np.float32)})


def test_windows_that_do_not_fit_are_refused() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            batch, height, width, channels = x.shape
            x = x.view(batch, height // 4, 4, width // 4, 4, channels).transpose(2, 3).contiguous()
            return x.view(-1, 4, 4, channels) + 1

    dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC},)
    example = (torch.randn(2, 8, 12, 3),)
    module = compiler.compile(Windows().eval(), example_inputs=example, dynamic_shapes=dynamic, threads=1)
    x = torch.randn(3, 12, 12, 3)
    np.testing.assert_array_equal(next(iter(module.run([x]).values())), Windows()(x))
    with pytest.raises(InputError):
        module.run([torch.randn(3, 10, 12, 3)])
