"""What the samples of PyTorch's own operator tests (`op_db`) found: types, scalars, empty tensors and options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import compiler
from compiler.errors import UnsupportedModelError
from tests.compiler.frontends.torch.test_decompositions import Applied, check, check_together, normal

WHOLE = torch.arange(-2, 10).reshape(3, 4)


def test_integers_become_floats() -> None:
    functions = {
        "gamma": lambda x: (torch.lgamma(x + 3), torch.digamma(x + 3), torch.mvlgamma(x + 5, 2)),
        "gamma of booleans": lambda x: (torch.lgamma(x > 2), torch.digamma(x > 2)),
        "angle": lambda x: (torch.angle(x), torch.angle(x > 2)),
        "copysign": lambda x: (torch.copysign(x, x - 4), torch.copysign(x, -2), torch.copysign(x > 0, x < 0)),
        "softmax": lambda x: (x.softmax(-1, torch.float32), x.log_softmax(0, torch.float64)),
    }
    check_together(functions, WHOLE)


def _softmaxes(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.softmax(-1, dtype), x.log_softmax(-1, dtype)


def test_softmax_is_computed_in_the_requested_type() -> None:
    x = normal(3, 64)
    for values, dtype, tolerance in ((x, torch.float64, 1e-15), (x.half(), torch.float32, 1e-7)):
        model = Applied(partial(_softmaxes, dtype=dtype)).eval()
        module = compiler.compile(model, example_inputs=(values,), threads=1)
        for found, wanted in zip(module.run([values.numpy()]).values(), model(values), strict=True):
            error = (torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max()
            assert found.dtype == wanted.numpy().dtype
            assert error < 3 * tolerance


def test_norms_keep_all_axes() -> None:
    orders = (2, 1, 0, 3.0, float("inf"))
    functions: dict[str, Callable[[Tensor], Any]] = {
        **{str(order): partial(torch.linalg.vector_norm, ord=order, keepdim=True) for order in orders},
        "norm": lambda x: (torch.linalg.norm(x, keepdim=True), torch.norm(x, keepdim=True), torch.linalg.norm(x)),
        "row": lambda x: torch.linalg.norm(x[0], 2, keepdim=True),
        "empty": lambda x: (torch.linalg.norm(x[:0], keepdim=True), torch.linalg.norm(x[0, :0], 2, keepdim=True)),
    }
    check_together(functions, normal(3, 4))
    check_together(functions, normal(3, 4).double())


def test_scalars() -> None:
    functions = {
        "order": lambda x: (torch.cummax(x, 0), torch.cummin(x, -1), torch.mode(x), torch.mode(x, 0, keepdim=True)),
        "buckets": lambda x: torch.bucketize(x, torch.tensor([0.5, 1.5, 2.5])),
        "powers": lambda x: torch.linalg.vander(x, N=3),
        "index_reduce": lambda x: torch.index_reduce(x, 0, torch.tensor([0]), 2 * x, "mean"),
        "one step": lambda x: (torch.linspace(x, 4.0, 1), torch.linspace(1, x, 1), torch.logspace(x, 3, 1)),
    }
    check_together(functions, torch.tensor(1.5))


def test_small_losses_are_not_lost() -> None:
    values = torch.tensor([[20.0, -30.0, 12.0]])
    check(lambda x: functional.soft_margin_loss(x, x.sign(), reduction="none") * 1e10, values, tolerance=0)
    check(lambda x: (functional.soft_margin_loss(x, -x.sign()), functional.soft_margin_loss(x, x)), normal(3, 4))


def test_distinct_booleans() -> None:
    check(lambda x: torch.unique(x > 0, return_inverse=True, return_counts=True), normal(9))
    check(lambda x: torch.unique(x > 0, dim=0), (normal(9, 2)))


def test_negative_places_along_an_axis() -> None:
    places = torch.tensor([[-1, 2], [0, 3], [-4, -2]])
    check(lambda x: (x.take_along_dim(places, 1), x.take_along_dim(places[:1], 1)), normal(3, 4))
    data = normal(3, 4)
    check(lambda index: data.take_along_dim(index, 1), places)


def test_reductions_by_index() -> None:
    index = torch.tensor([[0, 1], [1, 2], [3, 3]])
    functions = {
        "scatter": lambda x: (
            x.scatter(1, index, 2 * x[:, :2], reduce="multiply"),
            x.scatter(1, index, x, reduce="add"),
        ),
        "number": lambda x: (x.scatter(1, index, 2.5, reduce="add"), x.scatter(1, index, 2.5, reduce="multiply")),
        "bincount": lambda x: (index[:, 0].bincount(x[0, :3], 6), (x > 0).int()[0].bincount(index[0, :1].repeat(4))),
    }
    check_together(functions, normal(3, 4))


def test_places_of_a_number() -> None:
    ordered = torch.tensor([0.0, 0.5, 0.7, 1.0, 1.0, 2.0])
    check(lambda x: (torch.searchsorted(x, 0.5), torch.searchsorted(x, 1, right=True)), ordered)
    sorter = torch.arange(5, -1, -1)
    check(lambda x: torch.searchsorted(x, 0.7, side="right", sorter=sorter, out_int32=True), ordered.flip(0))


@pytest.mark.parametrize(
    ("shape", "output"), [((2, 5, 9, 12), (8, 9)), ((3, 10, 14, 6), (5, 7, 6)), ((2, 3, 70), (66,))]
)
def test_maxima_of_many_windows(shape: tuple[int, ...], output: tuple[int, ...]) -> None:
    """As slices they took minutes to compile."""
    pool = {1: functional.adaptive_max_pool1d, 2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}
    check(lambda x: pool[len(output)](x, output, return_indices=True), (normal(*shape) * 2).round())


def test_only_one_triangle_of_hermitian_matrices_is_read() -> None:
    check(lambda x: torch.linalg.pinv(x @ x.mT + x.triu(1), hermitian=True), normal(4, 4), tolerance=1e-3)
    check(lambda x: torch.linalg.matrix_rank(x.triu(1), hermitian=True), normal(4, 4))


def test_a_size_that_the_factor_does_not_give_is_refused() -> None:
    resize = torch.ops.aten._upsample_bilinear2d_aa
    model = Applied(lambda x: resize(x, (3, 3), True, 1.7, 0.9)).eval()
    with pytest.raises(UnsupportedModelError, match="the size 3 of axis 2 is not 10 times its factor"):
        compiler.compile(model, example_inputs=(normal(1, 3, 10, 20),), threads=1)
