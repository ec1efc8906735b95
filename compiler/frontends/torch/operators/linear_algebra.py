"""Matrix inverses, solvers and factorizations, computed in float64.

The kernels behind operators (`_linalg_slogdet` behind `slogdet`) are listed with them: torch's exporter decomposes
operators into these.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of
from compiler.frontends.torch.own_operators import own_operator, own_operator_with_results
from compiler.support.powers import by_squaring

# exp(A) = exp(A / 2^_SQUARINGS)^(2^_SQUARINGS), the inner one by its series; a norm above 2^10 overflows.
_SQUARINGS = 12
_TERMS = 18


@decomposition_of("aten.linalg_inv.default", "aten.inverse.default")
def _inverse(matrices: Tensor) -> Tensor:
    """Invert a matrix; a singular one gives NaN or infinities, where torch raises an error."""
    if matrices.is_complex():
        size, inverse = matrices.shape[-1], _inverse(_real(matrices))
        return torch.complex(inverse[..., :size, :size], inverse[..., size:, :size])
    shape = list(matrices.shape)
    return torch.onnx.ops.symbolic("com.microsoft::Inverse", [matrices], dtype=matrices.dtype, shape=shape, version=1)


@decomposition_of("aten.linalg_inv_ex.default")
def _inverse_and_errors(matrices: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    return _inverse(matrices), _no_errors(matrices)


@decomposition_of("aten.linalg_solve.default")
def _solve(matrices: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    vectors = right.ndim == 1 or (right.ndim == matrices.ndim - 1 and right.shape == matrices.shape[:-1])
    if vectors:
        return _solve(matrices, right.unsqueeze(-1)).squeeze(-1)
    if matrices.is_complex():
        return _solve(matrices.mT, right.mT).mT if not left else _solve_complex(matrices, right)
    return _product(_inverse(matrices.double()), right, left)


def _solve_complex(matrices: Tensor, right: Tensor) -> Tensor:
    size = matrices.shape[-1]
    found = _solve(_real(matrices), torch.cat([right.real, right.imag], -2))
    return torch.complex(found[..., :size, :], found[..., size:, :])


def _real(matrices: Tensor) -> Tensor:
    """Return the real matrix that maps real and imaginary parts of vectors like a complex matrix maps the vectors."""
    real, imaginary = matrices.real, matrices.imag
    return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)


@decomposition_of("aten.linalg_solve_ex.default")
def _solve_and_errors(
    matrices: Tensor, right: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor]:
    return _solve(matrices, right, left=left), _no_errors(matrices)


@decomposition_of("aten._linalg_solve_ex.default")
def _solve_with_factors(
    matrices: Tensor, right: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, ...]:
    """The factors are unused in inference: they are returned for the gradient."""
    unused = matrices.new_zeros(matrices.shape[:-1], dtype=torch.int32)
    return _solve(matrices, right, left=left), matrices, unused, _no_errors(matrices)


def _no_errors(matrices: Tensor) -> Tensor:
    return matrices.new_zeros(matrices.shape[:-2], dtype=torch.int32)


@decomposition_of("aten.triangular_solve.default")
def _triangular_solve(
    right: Tensor, matrices: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    taken, is_upper = (matrices.mT, not upper) if transpose else (matrices, upper)
    return _solve_triangular(taken, right, upper=is_upper, unitriangular=unitriangular), matrices.clone()


@decomposition_of("aten.linalg_solve_triangular.default")
def _solve_triangular(
    matrices: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    wide = matrices.double()
    if unitriangular:
        unit = torch.eye(matrices.shape[-1], dtype=torch.float64)
        wide = (wide.triu(1) if upper else wide.tril(-1)) + unit
    else:
        wide = wide.triu() if upper else wide.tril()
    return _product(_inverse(wide), right, left)


@decomposition_of("aten.cholesky_solve.default")
def _cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    return _product(_inverse(_gram(factor, upper)), right, True)


@decomposition_of("aten.cholesky_inverse.default")
def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    return _inverse(_gram(factor, upper)).to(factor.dtype)


def _gram(factor: Tensor, upper: bool) -> Tensor:
    """Return the matrix that a triangular factor belongs to, in float64."""
    wide = factor.double()
    wide = wide.triu() if upper else wide.tril()
    return wide.mT @ wide if upper else wide @ wide.mT


def _product(inverse: Tensor, right: Tensor, left: bool) -> Tensor:
    wide = right.double()
    return (inverse @ wide if left else wide @ inverse).to(right.dtype)


@decomposition_of("aten.linalg_cholesky.default", "aten.cholesky.default")
def _cholesky(matrices: Tensor, upper: bool = False, *_: bool) -> Tensor:
    """Cholesky factor; NaN if not positive definite, where torch raises an error."""
    if matrices.is_complex():
        return NotImplemented
    return own_operator("Cholesky", [matrices], matrices.dtype, matrices.shape, upper=int(upper))


@decomposition_of("aten.linalg_cholesky_ex.default")
def _cholesky_and_errors(matrices: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    factor = _cholesky(matrices, upper)
    return NotImplemented if factor is NotImplemented else (factor, _no_errors(matrices))


@decomposition_of("aten.linalg_qr.default")
def _qr(matrices: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    if matrices.is_complex():
        return NotImplemented
    rows, columns = matrices.shape[-2:]
    width = rows if mode == "complete" else smaller(rows, columns)
    stack = matrices.shape[:-2]
    shapes = [[*stack, rows, width], [*stack, width, columns]]
    dtypes, complete = [matrices.dtype] * 2, int(mode == "complete")
    left, right = own_operator_with_results("QR", [matrices], dtypes, shapes, complete=complete)
    return (matrices.new_empty(0) if mode == "r" else left), right


@decomposition_of("aten.linalg_lu_factor.default")
def _lu_factor(matrices: Tensor, *, pivot: bool = True) -> tuple[Tensor, Tensor]:
    if not pivot or matrices.is_complex():
        return NotImplemented
    steps = smaller(*matrices.shape[-2:])
    shapes = [list(matrices.shape), [*matrices.shape[:-2], steps]]
    factors, pivots = own_operator_with_results("LU", [matrices], [matrices.dtype, torch.int32], shapes)
    return factors, pivots


@decomposition_of("aten.linalg_lu_factor_ex.default")
def _lu_factor_and_errors(matrices: Tensor, *, pivot: bool = True, check_errors: bool = False) -> tuple[Tensor, ...]:
    if not pivot or matrices.is_complex():
        return NotImplemented
    return *_lu_factor(matrices), _no_errors(matrices)


@decomposition_of("aten.linalg_lu.default")
def _lu(matrices: Tensor, *, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    return _lu_unpack(*_lu_factor(matrices)) if pivot and not matrices.is_complex() else NotImplemented


@decomposition_of("aten.lu_unpack.default")
def _lu_unpack(
    factors: Tensor, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    if not (unpack_data and unpack_pivots):
        return NotImplemented
    rows, columns = factors.shape[-2:]
    width = smaller(rows, columns)
    lower = factors[..., :width].tril(-1) + torch.eye(rows, width, dtype=factors.dtype)
    return _permutation(pivots, rows).mT.to(factors.dtype), lower, factors[..., :width, :].triu()


def _permutation(pivots: Tensor, rows: Any) -> Tensor:
    """Return the matrix that exchanges rows like LAPACK's pivots."""
    order = torch.arange(rows).expand(*pivots.shape[:-1], rows)
    order = own_operator("ExchangedRows", [order, pivots], order.dtype, order.shape)
    return order.unsqueeze(-1) == torch.arange(rows)


@decomposition_of("aten.linalg_lu_solve.default")
def _lu_solve(factors: Tensor, pivots: Tensor, right: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    wide = factors.double()
    lower = wide.tril(-1) + torch.eye(wide.shape[-1], dtype=torch.float64)
    inverse = _inverse(wide.triu()) @ _inverse(lower) @ _permutation(pivots, wide.shape[-1]).double()
    return _product(inverse.mT if adjoint else inverse, right, left)


@decomposition_of("aten.lu_solve.default")
def _lu_solve_of_factors(right: Tensor, factors: Tensor, pivots: Tensor) -> Tensor:
    return _lu_solve(factors, pivots, right)


def smaller(one: Any, other: Any) -> Any:
    """Return the smaller size; `min` would compare dynamic ones."""
    minimum: Any = torch.sym_min
    return minimum(one, other)


def larger(one: Any, other: Any) -> Any:
    """Return the larger size; `max` would compare dynamic ones."""
    maximum: Any = torch.sym_max
    return maximum(one, other)


@decomposition_of("aten.linalg_tensorinv.default")
def _tensor_inverse(tensors: Tensor, ind: int = 2) -> Tensor:
    inverse = _inverse(tensors.reshape(prod(tensors.shape[:ind]), -1))
    return inverse.reshape(*tensors.shape[ind:], *tensors.shape[:ind])


@decomposition_of("aten.linalg_tensorsolve.default")
def _tensor_solve(tensors: Tensor, right: Tensor, dims: list[int] | None = None) -> Tensor:
    axes = [axis % tensors.ndim for axis in dims or ()]
    moved = tensors.permute([axis for axis in range(tensors.ndim) if axis not in axes] + axes)
    found = _solve(moved.reshape(right.numel(), -1), right.reshape(-1))
    return found.reshape(moved.shape[right.ndim :])


@decomposition_of("aten._linalg_slogdet.default")
def _sign_logarithm_and_factors(matrices: Tensor) -> tuple[Tensor, ...]:
    """The factors are unused in inference: they are returned for the gradient."""
    return *_sign_and_logarithm(matrices), matrices, matrices.new_zeros(matrices.shape[:-1], dtype=torch.int32)


@decomposition_of("aten.linalg_slogdet.default", "aten.slogdet.default")
def _sign_and_logarithm(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by its largest element first, so that the product stays in range."""
    largest = matrices.double().abs().amax(-1, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest)
    determinant = torch.linalg.det(matrices.double() / scale)
    logarithm = determinant.abs().log() + scale.log().sum((-2, -1))
    return determinant.sign().to(matrices.dtype), logarithm.to(matrices.dtype)


@decomposition_of("aten.logdet.default")
def _logarithm_of_determinant(matrices: Tensor) -> Tensor:
    sign, logarithm = _sign_and_logarithm(matrices)
    return torch.where(sign < 0, torch.nan, logarithm)


@decomposition_of("aten.linalg_matrix_exp.default", "aten.matrix_exp.default")
def _exponential(matrices: Tensor) -> Tensor:
    scaled = matrices.double() / 2**_SQUARINGS
    unit = torch.eye(matrices.shape[-1], dtype=torch.float64)
    result = unit + scaled / _TERMS
    for term in range(_TERMS - 1, 0, -1):
        result = unit + scaled @ result / term
    for _ in range(_SQUARINGS):
        result = result @ result
    return result.to(matrices.dtype)


@decomposition_of("aten.linalg_matrix_power.default", "aten.matrix_power.default")
def _power(matrices: Tensor, exponent: int) -> Tensor:
    base = _inverse(matrices) if exponent < 0 else matrices
    if exponent == 0:
        return torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand(matrices.shape)
    return by_squaring(base, abs(exponent), torch.matmul)


@decomposition_of("aten.linalg_vander.default")
def _powers(values: Tensor, **options: int | None) -> Tensor:
    """Powers 0, 1, 2, ... of each number, by products; `N` of them, by default as many as there are numbers."""
    return _vander(values.reshape(1) if values.ndim == 0 else values, options.get("N"), increasing=True)


@decomposition_of("aten.vander.default")
def _vander(values: Tensor, count: int | None = None, increasing: bool = False) -> Tensor:
    length = values.shape[-1] if count is None else count
    powers = [torch.ones_like(values)]
    while len(powers) < length:
        powers.append(powers[-1] * values)
    chosen = powers[:length]
    return torch.stack(chosen if increasing else chosen[::-1], -1)
