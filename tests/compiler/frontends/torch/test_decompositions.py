"""Operators that the exporter cannot convert, against torch: values, indices, ties, dynamic sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import compiler
from compiler.errors import UnsupportedModelError
from compiler.frontends.source import import_model

Function = Callable[[Tensor], Any]


class Applied(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def check(
    function: Function,
    x: Tensor,
    dynamic: Any = None,
    others: tuple[Tensor, ...] = (),
    tolerance: float = 1e-5,
    names: Sequence[str] = (),
) -> None:
    """Compare a module with torch at `x` and `others`; `names` are those of the results, for messages."""
    model = Applied(function).eval()
    module = compiler.compile(model, example_inputs=(x,), dynamic_shapes=dynamic, threads=1)
    for values in (x, *others):
        wanted = torch.utils._pytree.tree_leaves(model(values))
        found = list(module.run([values]).values())
        assert len(found) == len(wanted)
        for one, other, name in zip(found, wanted, names or [""] * len(wanted), strict=True):
            assert one.dtype == other.numpy().dtype, name
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=tolerance, err_msg=name)


def check_together(functions: Mapping[str, Function], x: Tensor, tolerance: float = 1e-5) -> None:
    """Check functions of one tensor as a single module; failures are named."""
    names = [name for name, function in functions.items() for _ in torch.utils._pytree.tree_leaves(function(x))]
    check(lambda values: [each(values) for each in functions.values()], x, names=names, tolerance=tolerance)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def squares(x: Tensor) -> Tensor:
    """Make positive definite matrices."""
    return x.mT @ x + torch.eye(x.shape[-1])


def scattered_corner(x: Tensor) -> list[Tensor]:
    index = torch.tensor([[0, 1], [1, 0]])
    data, source = x[0], x[1]
    return [
        data.scatter(1, index, source),
        data.scatter_add(0, index, source),
        *(data.scatter_reduce(0, index, source, how) for how in ("amax", "mean")),
        torch.view_as_real(torch.complex(data, source).scatter(1, index, torch.complex(source, data))),
    ]


def scattered(x: Tensor, reduce: str) -> list[Tensor]:
    """Rows written by index, some of them twice and one never."""
    places = torch.tensor([1, 3, 1, 0])
    index = places.unsqueeze(-1).expand(4, x.shape[-1])
    source = x[0, :4]
    return [
        found
        for own in (True, False)
        for found in (
            x[1].scatter_reduce(0, index, source, reduce, include_self=own),
            x[1].index_reduce(0, places, source, reduce, include_self=own),
        )
    ]


def filled_diagonal(x: Tensor) -> Tensor:
    filled = x.clone()
    filled.diagonal(1, 1, 2).fill_(7.0)
    return filled


LABELS = torch.tensor([0, 3, 5, 1, 1, 3, 2])
FUNCTIONS: dict[str, Function] = {
    "cumprod": lambda x: (torch.cumprod(x, 1), torch.cumprod((x * 2).round().to(torch.int32), -1)),
    "searchsorted": lambda x: torch.searchsorted(x.sort(-1)[0], x.round()),
    "isin": lambda x: torch.isin((x * 2).round(), torch.tensor([0.0, 1.0, -2.0])),
    "cdist": lambda x: torch.cdist(x, 2 * x[:, :4] + 1),
    "sort, stable": lambda x: torch.sort((x * 2).round(), dim=1, stable=True),
    "argsort, stable": lambda x: torch.argsort((x * 2).round(), descending=True, stable=True),
    "sort of booleans": lambda x: torch.sort(x > 0, dim=-1)[0],
    "amax, amin of all": lambda x: (x.amax(), x.amin(keepdim=True), x.sum().amax(), x.mean().amin()),
    "put": lambda x: x.put(torch.tensor([1, -2, 1]), torch.tensor([5.0, 6.0, 7.0]), accumulate=True),
    "diagonal, written": filled_diagonal,
    "scattered mean": lambda x: scattered(x, "mean"),
    "fill_diagonal_": lambda x: x[0].clone().fill_diagonal_(3.0),
    "batch_norm in training": lambda x: functional.batch_norm(x, x[0, :, 0].clone(), x[1, :, 1].abs(), training=True),
    "no dimension to squeeze": lambda x: x.squeeze((0, 1)),
    "median": lambda x: torch.median(x),
    "aminmax": lambda x: torch.aminmax(x),
    "cummax": lambda x: torch.cummax(x, 1),
    "hypot": lambda x: torch.hypot(1e30 * x, x.flip(1)),
    "copysign": lambda x: torch.copysign(x, x.flip(1).round()),
    "all true": lambda x: torch.ops.aten._is_all_true(x > -9),
    "any true": lambda x: torch.ops.aten._is_any_true(x > 9),
    "signbit": lambda x: torch.signbit(x.round()),
    "rows found by a condition": lambda x: [
        found
        for rows in ((x[0, :, 0] > 0).nonzero().view(-1), x[0][x[0, :, 1] > 0].view(-1).long().clamp(0, 6))
        for found in (x[0].index_select(0, rows), torch.zeros_like(x[0]).index_copy(0, rows, x[0][rows]))
    ],
    "masked values": lambda x: (torch.masked_select(x, x[:1] > 0), torch.masked_select(x[0], x > 1), x[x < 0]),
    "signs of NaN": lambda x: (x.sqrt().sign(), x.sqrt().sgn(), torch.heaviside(x.sqrt(), x), (x * 2).int().sign()),
    "rrelu": lambda x: functional.rrelu(x),
    "fmax, fmin": lambda x: (torch.fmax(x.log(), x.flip(1)), torch.fmin(x, x.flip(1).log())),
    "inverse of erf": lambda x: (torch.erfinv(x.tanh()), torch.special.erfinv(x.round().clamp(-2, 2))),
    "quantile": lambda x: x - 2**0.5 * torch.erfinv(2 * torch.tensor(0.95) - 1),
    "ranges of floats": lambda x: (
        torch.arange(0.1, 1.1),
        torch.arange(0.1, -4.0, -0.7),
        torch.arange(2.5) + x[0, 0, 0],
    ),
    "repeated to a known size": lambda x: torch.repeat_interleave(
        x, torch.tensor([2, 0, 3, 1, 1, 0]), 2, output_size=7
    ),
    "adaptive maximum": lambda x: functional.adaptive_max_pool2d(x[:, None], (2, 4), return_indices=True),
    "divided by zero": lambda x: (x.round() / 0.0, x[:1].var(0)),
}
RARER_FUNCTIONS: dict[str, Function] = {
    "inverses": lambda x: (
        torch.linalg.inv(squares(x)),
        torch.linalg.inv_ex(squares(x))[0],
        torch.cholesky_inverse(squares(x)[0].triu(), upper=True),
    ),
    "solutions": lambda x: (
        torch.linalg.solve(squares(x), x[:, :6, :4]),
        torch.linalg.solve(squares(x), x[:, 0]),
        torch.linalg.solve(squares(x), x, left=False),
        torch.linalg.solve_triangular(squares(x).triu(), x[:, :6], upper=True),
        torch.linalg.solve_triangular(x[:, :6] / 4, x, upper=False, left=False, unitriangular=True),
        torch.cholesky_solve(x[:, :6], squares(x).tril() + torch.eye(6)),
        torch.linalg.solve_ex(squares(x), x[:, :6, :4])[0],
        torch.triangular_solve(x[:, :6], squares(x)),
        torch.triangular_solve(x[:, :6], squares(x), upper=False, transpose=True, unitriangular=True)[0],
    ),
    "adaptive maximum of rows": lambda x: functional.adaptive_max_pool1d(x, 4),
    "searchsorted, right": lambda x: torch.searchsorted(x[0, 0].sort()[0], x, right=True, out_int32=True),
    "cdist of many rows": lambda x: torch.cdist(x.repeat(1, 8, 1), x.repeat(1, 6, 1) + 1),
    "median of an axis": lambda x: torch.median(x, 1),
    "kthvalue": lambda x: torch.kthvalue(x, 3, 1),
    "cummax of ties": lambda x: torch.cummax(x.round(), -1),
    "aminmax of an axis": lambda x: torch.aminmax(x, dim=1, keepdim=True),
    "sums of windows": lambda x: (
        functional.avg_pool2d(x, 2, divisor_override=3),
        functional.avg_pool2d(x, (3, 2), (2, 3), (1, 0), ceil_mode=True, count_include_pad=False, divisor_override=7),
        functional.avg_pool3d(x[None], 2, 1, 1, ceil_mode=True, divisor_override=-2),
    ),
    "cross entropy of smoothed labels": lambda x: (
        functional.cross_entropy(x[0], LABELS, label_smoothing=0.2),
        functional.cross_entropy(x[0], LABELS, x[1, 0].abs(), label_smoothing=0.2, ignore_index=3),
        functional.cross_entropy(x[0], LABELS, x[1, 0].abs(), label_smoothing=0.2, reduction="none"),
        functional.cross_entropy(x, x.flip(1).softmax(1), x[0, :, 0].abs(), label_smoothing=0.1),
    ),
    "scattered maximum": lambda x: scattered(x, "amax"),
    "a corner of the source": scattered_corner,
    "mode": lambda x: torch.mode((x * 2).round(), 1),
    "mode, kept": lambda x: torch.mode((x * 2).round(), -1, keepdim=True)[0],
    "nanmedian": lambda x: (torch.nanmedian(x.sqrt()), *torch.nanmedian(x.abs(), 1)),
    "nanmedian of some": lambda x: torch.nanmedian(x.sqrt(), 1, keepdim=True)[0],
    "vander": lambda x: (torch.vander(x[0, 0], 4), torch.linalg.vander(x)),
    "cdist, p 1": lambda x: torch.cdist(x, x[:, :4], p=1.0),
    "cdist, p 3": lambda x: torch.cdist(x, x[:, :4], p=3.0),
    "cdist, p 0": lambda x: torch.cdist(x, x[:, :4], p=0.0),
    "cdist, p inf": lambda x: torch.cdist(x, x[:, :4], p=float("inf")),
    "pdist": lambda x: torch.pdist(x[0]),
    "median of an even axis": lambda x: torch.median(x, 2, keepdim=True),
    "cummin of ties": lambda x: torch.cummin(x.round(), 0),
    "gamma": lambda x: (torch.lgamma(5 * x), torch.digamma(3 * x), torch.mvlgamma(x.abs() + 3, 3)),
    "factors": lambda x: (
        torch.linalg.cholesky(squares(x)),
        torch.linalg.cholesky(squares(x), upper=True),
        torch.linalg.cholesky_ex(squares(x)),
        torch.linalg.qr(x),
        torch.linalg.qr(x.mT, "complete"),
        torch.linalg.qr(squares(x).triu())[1],
    ),
    "determinants": lambda x: (
        torch.linalg.det(squares(x)),
        torch.linalg.slogdet(x[:, :6] * 1e30),
        torch.slogdet(squares(x).double()),
        torch.logdet(squares(x)),
    ),
    "powers of matrices": lambda x: (
        torch.linalg.matrix_exp(x[:, :6]),
        torch.matrix_exp(x[:, :6] / 2),
        torch.linalg.matrix_power(x[:, :6] / 2, 5),
        torch.linalg.matrix_power(squares(x), -2),
    ),
    "adaptive maximum of volumes": lambda x: functional.adaptive_max_pool3d(
        x[:, None, :4], (2, 1, 2), return_indices=True
    ),
    "adaptive means of volumes": lambda x: (
        functional.adaptive_avg_pool3d(x[:, None], (2, 3, 4)),
        functional.adaptive_avg_pool3d(x, 1),
    ),
}


_PARTS = 3


@pytest.mark.parametrize("part", range(_PARTS))
def test_functions(part: int) -> None:
    check_together(dict(list(FUNCTIONS.items())[part::_PARTS]), normal(2, 7, 6))


@pytest.mark.parametrize("part", range(_PARTS))
def test_rarer_functions(part: int) -> None:
    check_together(dict(list(RARER_FUNCTIONS.items())[part::_PARTS]), normal(2, 7, 6))


def test_cummax_of_nan() -> None:
    x = normal(3, 9)
    x[0, 4] = x[1, 0] = x[1, 5] = torch.nan
    check(lambda values: torch.cummax(values, 1), x)


def test_running_values_of_dynamic_axes() -> None:
    def running(x: Tensor) -> list[Any]:
        whole = (x * 2).round()
        products = torch.cumprod(x, 0), torch.cumprod(whole.to(torch.int32), 1)
        return [torch.cummax(whole, 0), torch.cummin(x, -1), torch.cummax(x > 0, 1), *products]

    x = normal(6, 4)
    x[2, 1] = x[4, 3] = torch.nan
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    check(running, x, dynamic, (normal(1, 9), x.repeat(2, 3), torch.zeros(0, 3)))


def test_adaptive_means_of_volumes_of_dynamic_size() -> None:
    dynamic = (dict.fromkeys((2, 3, 4), torch.export.Dim.DYNAMIC),)
    others = (normal(2, 3, 2, 4, 1), normal(2, 3, 9, 5, 4))
    check(lambda x: functional.adaptive_avg_pool3d(x, (2, 3, 2)), normal(2, 3, 7, 8, 5), dynamic, others)


def test_cholesky_factors_of_dynamic_sizes() -> None:
    def factors(x: Tensor) -> list[Tensor]:
        matrices = x @ x.mT + torch.eye(x.shape[1])
        lower = torch.linalg.cholesky(matrices.triu() * 2 + matrices.tril())  # only one triangle is read
        upper = torch.linalg.cholesky(matrices.triu() + matrices.tril() * 2, upper=True)
        return [lower, upper, torch.cholesky_solve(x, torch.linalg.cholesky(matrices))]

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    check(factors, normal(2, 5, 4), dynamic, (normal(3, 70, 4), normal(1, 1, 4)), tolerance=1e-4)


def test_cholesky_factor_of_a_matrix_that_is_not_positive_definite() -> None:
    x = torch.tensor([[4.0, 2.0], [2.0, 0.5]])
    module = compiler.compile(Applied(torch.linalg.cholesky).eval(), example_inputs=(torch.eye(2),), threads=1)
    (found,) = module.run([x]).values()
    assert found[0, 0] == 2
    assert np.isnan(found[1, 1])


def test_factors_of_dynamic_sizes() -> None:
    def factors(x: Tensor) -> list[Any]:
        found = [torch.linalg.qr(each, mode) for each in (x, x.mT) for mode in ("reduced", "complete", "r")]
        return [*found, torch.linalg.lu(x), torch.linalg.lu_factor(x.mT), torch.linalg.lu(x.mT)]

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    check(factors, normal(2, 5, 6), dynamic, (normal(3, 70, 6), normal(1, 3, 6)))


def test_solutions_from_lu_factors() -> None:
    def solutions(x: Tensor) -> list[Tensor]:
        factors = torch.linalg.lu_factor(x @ x.mT + x[..., :1])
        return [
            torch.linalg.lu_solve(*factors, x),
            torch.linalg.lu_solve(*factors, x.mT, left=False, adjoint=True),
            torch.lu_solve(x, *factors),
        ]

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    check(solutions, normal(2, 5, 7), dynamic, (normal(3, 6, 7),), tolerance=1e-3)


def test_inverses_of_large_matrices() -> None:
    def inverse(x: Tensor) -> Tensor:
        return torch.linalg.inv(x + x.shape[-1] * torch.eye(x.shape[-1], dtype=x.dtype).flip(0))

    check(inverse, normal(2, 75, 75).double())
    dynamic = ({1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    check(inverse, normal(2, 5, 5).double(), dynamic, tuple(normal(2, size, size).double() for size in (1, 33, 75)))


def test_pivots_that_are_not_rows_stay_in_the_matrix() -> None:
    class Solution(nn.Module):
        def forward(self, factors: Tensor, pivots: Tensor, right: Tensor) -> Tensor:
            return torch.linalg.lu_solve(factors, pivots, right)

    example = (torch.eye(3), torch.tensor([1, 2, 3], dtype=torch.int32), normal(3, 2))
    module = compiler.compile(Solution().eval(), example_inputs=example, threads=1)
    right = normal(3, 2).numpy()
    (found,) = module.run([np.eye(3, dtype=np.float32), np.array([1 << 30, -(1 << 30), 3], np.int32), right]).values()
    np.testing.assert_array_equal(found, right[[1, 2, 0]])


def test_singular_values_and_eigenvalues_of_dynamic_sizes() -> None:
    """Vectors have any sign: matrices are put together again."""

    def values(x: Tensor) -> list[Tensor]:
        results = [torch.linalg.svdvals(x), torch.linalg.cond(x), torch.linalg.matrix_norm(x, "nuc")]
        for matrices in (x, x.mT, x[..., :1] @ x[..., :1, :]):
            left, found, right = torch.linalg.svd(matrices, full_matrices=False)
            results += [left * found.unsqueeze(-2) @ right, left.mT @ left, found]
        left, found, right = torch.linalg.svd(x)
        results += [left.mT @ left, found, right @ right.mT]
        symmetric = x @ x.mT - 2 * torch.eye(x.shape[1])
        found, vectors = torch.linalg.eigh(symmetric.tril() + 3 * symmetric.triu(1))  # only one triangle is read
        return [*results, found, vectors * found.unsqueeze(-2) @ vectors.mT, torch.linalg.eigvalsh(symmetric, "U")]

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    check(values, normal(2, 5, 6), dynamic, (normal(3, 20, 6), normal(1, 3, 6)), tolerance=1e-4)


def test_least_squares() -> None:
    def solutions(x: Tensor) -> list[Tensor]:
        low = x[..., :2] @ x[..., :2, :4]
        return [
            *(torch.linalg.pinv(x), torch.pinverse(x.mT), torch.linalg.pinv(low, rtol=1e-3)),
            *(torch.linalg.matrix_rank(x), torch.linalg.matrix_rank(low)),
            torch.linalg.lstsq(x[..., :3], x[..., 3:]).solution,
            torch.linalg.lstsq(x[0, :, :3], x[0, :, 3])[0],
        ]

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim("rows", min=5, max=6)},)
    check(solutions, normal(2, 5, 6), dynamic, (normal(3, 6, 6),), tolerance=1e-3)


def test_inverses_of_tensors() -> None:
    def inverses(x: Tensor) -> list[Tensor]:
        square = squares(x)[0]
        return [
            torch.linalg.tensorinv(square.reshape(2, 3, 6), ind=2),
            torch.linalg.tensorsolve(square.reshape(2, 3, 3, 2), x[0, :2, :3]),
            torch.linalg.tensorsolve(square.reshape(6, 3, 2).movedim(0, 1), x[0, :2, :3], dims=(1,)),
        ]

    check(inverses, normal(2, 5, 6), tolerance=1e-4)


def test_bits() -> None:
    functions: dict[str, Function] = {
        "magnitudes": lambda x: (x.view(torch.int32) & 0x7FFFFFFF).view(torch.float32),
        "bfloat16": lambda x: x.to(torch.bfloat16).view(torch.int16),
        "halves": lambda x: x.to(torch.int16).view(torch.float16).float(),
        "frexp": torch.frexp,
    }
    check_together(functions, torch.cat([normal(40) * 50, torch.tensor([0.0, -0.0, 1e-40, 1.0, -8.0, torch.inf])]))
    with pytest.raises(UnsupportedModelError, match=r"aten.view.dtype \(.*\): these types, options or sizes"):
        import_model(Applied(lambda x: x.view(torch.uint8)).eval(), example_inputs=(normal(5, 4),))


def test_bessel_functions_of_order_1() -> None:
    check_together({"i1": torch.special.i1, "i1e": torch.special.i1e}, torch.linspace(-9, 9, 37))


def test_spherical_bessel_function() -> None:
    check(torch.special.spherical_bessel_j0, torch.tensor([0.0, -1e-30, 1e-3, 0.4999, -0.5, 3.0, 40.0, torch.inf]))


def test_gamma_of_odd_values() -> None:
    values = [0.0, -0.0, 1.0, 2.0, 1e-30, -1e-30, 0.5, -0.5, 1e6, 3e8, 1e30, torch.inf, -torch.inf, torch.nan, -7.25]
    check_together({"lgamma": torch.lgamma, "digamma": torch.digamma}, torch.tensor(values))


def test_distances_of_open_sizes() -> None:
    sizes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    check(lambda x: torch.cdist(x, 2 * x), normal(2, 5, 3), sizes, (normal(3, 7, 3), normal(1, 20, 3)))


def test_embedding_bags() -> None:
    options: tuple[dict[str, Any], ...] = ({}, {"padding_idx": 2}, {"include_last_offset": True})
    bags = {
        f"{mode} {each}": nn.EmbeddingBag(9, 4, mode=mode, **each).requires_grad_(False)
        for mode, each in product(("sum", "mean", "max"), options)
    }
    offsets = torch.tensor([0, 3, 3, 5, 8])  # one bag is empty
    indices = torch.tensor([1, 2, 8, 2, 2, 0, 3, 4])
    check_together({name: partial(bag, offsets=offsets) for name, bag in bags.items()}, indices)


def test_embedding_bag_with_weights() -> None:
    bag = nn.EmbeddingBag(9, 4, mode="sum").requires_grad_(False)
    indices, offsets = torch.tensor([1, 2, 8, 2, 2]), torch.tensor([0, 2])
    check(lambda x: bag(indices, offsets, per_sample_weights=x), normal(5))


def regions() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corner, extent = 10 * torch.rand(6, 2, generator=generator), 12 * torch.rand(6, 2, generator=generator)
    return torch.cat([torch.tensor([[0.0], [1], [1], [0], [1], [0]]), corner, corner + extent], 1)


def test_roi_pool() -> None:
    boxes = regions()
    check(lambda x: torchvision.ops.roi_pool(x, boxes, (3, 5), 0.5), normal(2, 4, 13, 17))


def test_ps_roi_align() -> None:
    boxes = regions()
    check(lambda x: torchvision.ops.ps_roi_align(x, boxes, (2, 3), 0.5, 2), normal(2, 12, 13, 17))


@pytest.mark.parametrize("constant", [True, False])
def test_product_of_groups(constant: bool) -> None:
    """Each row with the matrix of its group, which is constant or computed; one group is empty."""
    pytest.importorskip("transformers.integrations.moe")
    weights, ends = normal(4, 6, 5), torch.tensor([1, 1, 9, 11], dtype=torch.int32)

    def product(x: Tensor) -> Tensor:
        matrices = weights if constant else weights * x[:4, None]
        result: Tensor = torch.ops.transformers.grouped_mm_fallback(x, matrices.transpose(1, 2), ends)
        return result

    check(product, normal(11, 5))


def test_interpolation_of_open_sizes_by_factors_that_float32_rounds() -> None:
    def resized(x: Tensor) -> list[Tensor]:
        aligned = functional.interpolate(x, scale_factor=0.7, mode="linear", align_corners=True)
        return [functional.interpolate(x, scale_factor=2.3), aligned]

    others = (normal(1, 2, 50), normal(1, 2, 90))
    check(resized, normal(1, 2, 11), ({2: torch.export.Dim.DYNAMIC},), others, tolerance=5e-5)


def test_antialiased_interpolation_to_open_sizes() -> None:
    def resized(x: Tensor) -> list[Tensor]:
        size = (x.shape[2] // 3, 2 * x.shape[3] - 5)
        return [functional.interpolate(x, size, mode=mode, antialias=True) for mode in ("bilinear", "bicubic")]

    dynamic = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    others = (normal(1, 2, 7, 4), normal(1, 2, 40, 11))
    check(resized, normal(1, 2, 16, 9), dynamic, others, tolerance=5e-5)


def test_draws_without_replacement_are_different_ones() -> None:
    check(lambda x: torch.multinomial(x.abs(), 6).sort(-1)[0], normal(9, 6))  # all of six: 0, 1, ..., 5


def test_interpolation_by_factors() -> None:
    """Coordinates follow the factor, not the ratio of sizes; 50 * 2.3 is below 115 in float64, and not in float32."""

    def resized(x: Tensor, antialias: bool) -> list[Tensor]:
        modes = ["bilinear", "bicubic"] if antialias else ["nearest", "bilinear", "bicubic"]
        own = [functional.interpolate(x, scale_factor=(0.7, 2.3), mode=mode, antialias=antialias) for mode in modes]
        given = torch.ops.aten.upsample_bilinear2d(x, [6, 75], False, 0.7, 1.5)
        whole = functional.interpolate(x[..., :3], scale_factor=2.3, mode=modes[0], antialias=antialias)
        return [*own, given, whole, functional.interpolate(x, (5, 13), mode="bilinear", antialias=antialias)]

    both = {f"antialias={each}": partial(resized, antialias=each) for each in (False, True)}
    check_together(both, normal(1, 2, 9, 50), tolerance=5e-5)  # positions up to 50, in float32


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_elements_at_open_sizes(mode: str) -> None:
    """The places are rounded as PyTorch's: sizes of 33 from 16 are not exact in float32."""

    def resized(x: Tensor) -> list[Tensor]:
        to_size = functional.interpolate(x, size=(x.shape[3], 9), mode=mode)
        return [functional.interpolate(x, scale_factor=(1.3, 0.7), mode=mode), to_size]

    dynamic = (dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC),)
    check(resized, normal(1, 1, 9, 14), dynamic, (normal(1, 1, 19, 33), normal(1, 1, 33, 5), normal(1, 1, 4, 33)))
    check(lambda x: functional.interpolate(x, scale_factor=(1.3, 0.7), mode=mode), normal(1, 1, 9, 15))


def test_written_at_places_of_int32() -> None:
    places = torch.tensor([3, 1], dtype=torch.int32)

    def written(x: Tensor) -> Tensor:
        values = x.clone()
        values[places - 1, places] = 7.0
        return values.index_put((places[:1], places), torch.ones(2), accumulate=True)

    check(written, normal(4, 5))


def test_any_of_no_rows() -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    check(lambda x: ((x > 0).any(0), x.any(), x.any(1, keepdim=True)), normal(3, 4), dynamic, (torch.zeros(0, 4),))


def test_sums_of_halves_are_halves() -> None:
    def sums(x: Tensor) -> list[Tensor]:
        whole = [x.sum(), x.sum(0, dtype=torch.float32)]
        return [*whole, x.sum(1, keepdim=True), x.sum((0, 2)), x.cumsum(1), x.prod(1)]

    check(sums, normal(2, 3, 4).half(), tolerance=4e-3)


def test_attention_of_few_keys_in_three_dimensions() -> None:
    check(lambda x: functional.scaled_dot_product_attention(x, x[:2], x[:2] + 1, enable_gqa=True), normal(4, 5, 8))


def test_sums_of_windows_of_open_sizes() -> None:
    dynamic = ({2: torch.export.Dim.DYNAMIC},)
    others = (normal(1, 2, 7, 6), normal(1, 2, 9, 6))
    pool = nn.AvgPool2d((3, 2), (2, 3), 1, ceil_mode=True, divisor_override=5)
    check(pool, normal(1, 2, 8, 6), dynamic, others)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 3, 4)], ids=str)
def test_attention_of_any_rank(leading: tuple[int, ...]) -> None:
    def attention(x: Tensor) -> tuple[Tensor, ...]:
        query, key, value = x[..., :5, :], x[..., 5:12, :], x[..., 12:, :]
        mask = (query @ key.mT > -1).index_fill(-2, torch.tensor([2]), False)  # one query may look at no key
        plain = functional.scaled_dot_product_attention
        return (
            plain(query, key, value),
            plain(query, key, value, mask),
            plain(query, key, value, is_causal=True, scale=0.3),
            plain(query[..., :1, :], key, value, (mask[..., :1, :] * 1.0)),
        )

    check(attention, normal(*leading, 19, 8))


def test_causal_attention_and_heads_that_share_keys() -> None:
    """One operator, also of dynamic length; a batch of keys that is repeated is written out."""

    def attention(x: Tensor) -> tuple[Tensor, ...]:
        plain, few = functional.scaled_dot_product_attention, x[:, :2]
        return (
            plain(x, few, few + 1, is_causal=True, enable_gqa=True),
            plain(x, few[:, :, :5], few[:, :, 2:7], enable_gqa=True, scale=0.4),
            plain(x, x[:1], x[:1], is_causal=True),
            plain(x, x, x + 1, x[:, :1, :, :1]),
        )

    check(attention, normal(2, 4, 9, 8), ({2: torch.export.Dim.DYNAMIC},), (normal(2, 4, 21, 8),))
    imported = import_model(Applied(attention).eval(), example_inputs=(normal(2, 4, 9, 8),))
    assert sum("cached_attention" in each.name_hint for each in imported.mod.get_global_vars()) == 2


def test_attention_with_heads_that_share_keys_by_broadcasting() -> None:
    check(lambda x: functional.scaled_dot_product_attention(x, x[:, :1, :1], 2 * x[:, :1, :1]), normal(2, 3, 4, 5, 8))


def test_numbers_and_tensors_of_other_types() -> None:
    """As in masks: `(1.0 - mask) * -10000` of integers."""

    def arithmetic(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        values = (x.abs() * 3 + 1).to(dtype)
        own = () if dtype == torch.bool else (1 - values, 7.5 - values, torch.rsub(values, 2.5, alpha=2))
        return *own, 7 // values, 7.5 // values, values // 2, values // 2.5

    types = (torch.float32, torch.int64, torch.int32, torch.bool)
    check_together({str(dtype): partial(arithmetic, dtype=dtype) for dtype in types}, normal(2, 3))


def test_sums_of_booleans_beside_sums_of_numbers() -> None:
    def sums(x: Tensor) -> tuple[Tensor, ...]:
        first, second = x > 0, x[:1] < 0.5
        mixed = first + x.int(), first + x, torch.add(x, first, alpha=2), torch.add(x.int(), x.int(), alpha=3)
        changed = (x > 1).add_(second)
        return first + second, second + True, torch.add(second, first, alpha=0), changed, *mixed

    check(sums, normal(3, 4))


def test_adaptive_means_of_images_of_open_size() -> None:
    open_size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    others = (normal(2, 3, 13, 7), normal(2, 3, 5, 21))
    outputs = ((3, 4), (1, 5), (None, 2))
    means = lambda x: [functional.adaptive_avg_pool2d(x, output) for output in outputs]  # noqa: E731
    check(means, normal(2, 3, 12, 8), (open_size,), others)


def test_adaptive_means_of_rows_of_open_size() -> None:
    others = (normal(2, 3, 13), normal(2, 3, 7))
    check(lambda x: functional.adaptive_avg_pool1d(x, 4), normal(2, 3, 12), ({2: torch.export.Dim.DYNAMIC},), others)


def test_adaptive_maxima_of_images_of_open_size() -> None:
    """Example sizes are multiples of the output size, for which torch's decomposition assumes equal windows."""
    open_size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example, *others = (x.mul(2).round() for x in (normal(2, 3, 12, 8), normal(2, 3, 13, 7), normal(1, 3, 5, 21)))
    function = partial(functional.adaptive_max_pool2d, output_size=(3, 4), return_indices=True)
    check(function, example, ({0: torch.export.Dim.DYNAMIC, **open_size},), tuple(others))


def test_an_operator_that_fixes_an_open_size_is_refused_with_what_works() -> None:
    """Otherwise the module would silently be wrong for sizes other than the example's."""
    model, example = Applied(lambda x: torch.pdist(x[..., 0])).eval(), normal(6, 4, 2)
    size = torch.export.Dim.DYNAMIC
    with pytest.raises(UnsupportedModelError, match="dimension 0 of x") as raised:
        compiler.compile(model, example_inputs=(example,), dynamic_shapes=({0: size, 2: size},), threads=1)
    assert raised.value.hint is not None
    text = raised.value.hint.partition("dynamic_shapes=")[2]
    module = compiler.compile(model, example_inputs=(example,), dynamic_shapes=eval(text), threads=1)
    assert [isinstance(axis, str) for axis in module.inputs[0].shape] == [False, False, True]


def test_shifts_keep_the_sign_and_the_type() -> None:
    def shifts(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        values = (x * 60).to(dtype)
        steps = torch.tensor([0, 1, 2, 3], dtype=dtype)
        own = torch.bitwise_right_shift(values, 2), torch.bitwise_left_shift(values, steps)
        return values >> 1, values << 2, (values << 2) >> 1, values >> steps, 3 << (values & 3), *own

    types = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
    check_together({str(dtype): partial(shifts, dtype=dtype) for dtype in types}, normal(5, 4))


def test_even_parts_of_a_dynamic_size() -> None:
    dynamic = {"x": {1: torch.export.Dim.AUTO}}
    split = lambda x: x.tensor_split(3, 1)  # noqa: E731
    check(split, normal(2, 8), dynamic, (normal(2, 9), normal(2, 7), normal(2, 3)))
    parts_of_a_part = lambda x: x.tensor_split(2, 1)[1].tensor_split(3, 1)  # noqa: E731
    check(parts_of_a_part, normal(2, 14), dynamic, (normal(2, 23), normal(2, 30)))
    program = torch.export.export(Applied(split), (normal(2, 8),), dynamic_shapes=dynamic)
    with pytest.raises(UnsupportedModelError, match="splits a dynamic size"):
        compiler.compile(program)


def test_sums_over_a_computed_number_of_values() -> None:
    def means(x: Tensor) -> tuple[Tensor, ...]:
        values, places, counts = torch.unique(x[:, 0].round(), return_inverse=True, return_counts=True)
        return values, torch.zeros(values.shape[0], 3).index_add(0, places, x) / counts[:, None]

    check(means, normal(6, 3), {"x": {0: torch.export.Dim("n", min=2, max=64)}}, (normal(2, 3), normal(30, 3)))


def test_places_of_nan_in_sorted_rows() -> None:
    values = torch.tensor([[torch.nan, 0.0, torch.inf]])
    for right in (False, True):
        check(lambda x: torch.searchsorted(x, values, right=right), torch.tensor([[-1.0, 0.0, 2.0]]))  # noqa: B023


def test_buckets_of_a_dynamic_number() -> None:
    def sequences(x: Tensor) -> tuple[Tensor, ...]:
        """The sequence of each packed row."""
        ends = torch.arange(1, x.shape[0] + 1) * x.shape[1]
        rows = torch.arange(x.shape[0] * x.shape[1])
        return x.sum(), *(torch.bucketize(rows, ends, right=right) for right in (False, True))

    check(sequences, normal(2, 5), ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},), (normal(6, 3),))


def test_what_is_constant_is_evaluated_where_an_operator_has_no_conversion() -> None:
    matrix = torch.tensor([[4.0, 1.0], [2.0, 3.0]])

    class Folded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(matrix.clone())
            self.register_buffer("rows", matrix @ matrix.mT)

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.igamma(self.weight * 2, self.weight) + torch.linalg.eigvalsh(self.rows)

    model, x = Folded().eval(), normal(3, 2)
    dynamic = ({0: torch.export.Dim("rows", max=64)},)
    module = compiler.compile(model, example_inputs=(x,), dynamic_shapes=dynamic, threads=1)
    for given in (x, normal(5, 2)):
        np.testing.assert_allclose(module.run({"x": given.numpy()})["output_0"], model(given).detach(), rtol=1e-5)
    with pytest.raises(UnsupportedModelError, match="igamma"):
        compiler.compile(Applied(lambda x: torch.igamma(x, x)).eval(), example_inputs=(x,), threads=1)


UNARY = {
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "logsigmoid": functional.logsigmoid,
    "erfc": torch.erfc,
    "erfcx": torch.special.erfcx,
    "log_ndtr": torch.special.log_ndtr,
    "i0": torch.special.i0,
    "i0e": torch.special.i0e,
}
BINARY = {
    "atan2": torch.atan2,
    "remainder": torch.remainder,
    "floor_divide": torch.floor_divide,
    "div floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "xlog1py": torch.special.xlog1py,
    "bce": lambda x, y: functional.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="none"),
}
MAGNITUDES = (1e-30, 1e-10, 1e-7, 1e-5, 1e-3, 0.1, 0.3, 0.5, 0.9, 1.0, 1.5, 2.0, 5.0, 20.0, 88.0, 100.0, 1e4, 1e7)


def test_functions_keep_their_relative_precision_everywhere() -> None:
    """Each element against torch in float64; the exporter's own forms give 0, infinity or an error of one divisor."""
    numbers = [0.0, -0.0, math.inf, -math.inf, math.nan, *MAGNITUDES, *(-each for each in MAGNITUDES)]
    x = torch.tensor(numbers).repeat_interleave(len(numbers))
    y = torch.tensor(numbers).repeat(len(numbers))

    class Functions(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return (*(each(x) for each in UNARY.values()), *(each(x, y) for each in BINARY.values()))

    module = compiler.compile(Functions().eval(), example_inputs=(x, y), threads=1)
    found = dict(zip([*UNARY, *BINARY], module.run([x, y]).values(), strict=True))
    single = dict(zip(found, Functions()(x, y), strict=True))
    double = dict(zip(found, Functions()(x.double(), y.double()), strict=True))
    for name, ours in found.items():
        theirs, exact = single[name].numpy(), double[name].numpy()
        with np.errstate(invalid="ignore", over="ignore"):
            bound = 3e-6 * np.abs(exact) + 4 * np.abs(theirs - exact) + 1e-37  # what float32 loses is lost by both
            close = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs)) | (np.abs(ours - exact) <= bound)
        close |= np.isnan(theirs) & ((x / y).abs().numpy() > 1e30)  # torch's quotient of a remainder is infinite there
        wrong = np.flatnonzero(~close)[:3]
        assert close.all(), (name, [(float(x[i]), float(y[i]), ours[i], theirs[i]) for i in wrong])


def test_next_numbers_are_exact() -> None:
    ends = torch.finfo(torch.float32)
    special = [0.0, -0.0, 1.0, -1.0, 2.0, ends.tiny, -ends.tiny, 2**-149, -(2**-149), ends.max, -ends.max]
    values = torch.tensor([*special, math.inf, -math.inf, math.nan, *(normal(20) * 1e3).tolist()])
    towards = (math.inf, -math.inf, 0.0, 1.0, math.nan)
    model = Applied(lambda x: [torch.nextafter(x, torch.full_like(x, end)) for end in towards]).eval()
    module = compiler.compile(model, example_inputs=(values,), threads=1)
    for found, wanted in zip(module.run([values]).values(), model(values), strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize("dynamic", [None, ({0: torch.export.Dim.DYNAMIC},)], ids=["fixed", "dynamic"])
def test_axes_of_other_sizes_than_one_are_not_squeezed(dynamic: Any) -> None:
    def squeezed(x: Tensor) -> list[Tensor]:
        return [
            x.squeeze(0),
            x.squeeze(1) * 2,
            x.squeeze(2) + 1,
            x.squeeze((0, 1, 3)),
            x.squeeze(),
            x[0, 0, 0, 0].squeeze(0),
        ]

    check(squeezed, normal(2, 1, 3, 1), dynamic=dynamic, others=(normal(5, 1, 3, 1),) if dynamic else ())
