"""Matrix inverses, solvers and factorizations, computed in float64.

QR is unrolled step by step: it supports matrices of known sizes up to `_LARGEST`. The kernels behind operators
(`_linalg_slogdet` behind `slogdet`) are listed with them: torch's exporter decomposes operators into these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx.registry import TORCH_DOMAIN
from compiler.frontends.torch.decomposition import decomposition_of

_LARGEST = 64
# exp(A) = exp(A / 2^_SQUARINGS)^(2^_SQUARINGS), the inner one by its series; a norm above 2^10 overflows.
_SQUARINGS = 12
_TERMS = 18


@decomposition_of("aten.linalg_inv.default", "aten.inverse.default")
def _inverse(matrices: Tensor) -> Tensor:
    """Invert a matrix; a singular one gives NaN or infinities, where torch raises an error."""
    shape = list(matrices.shape)
    return torch.onnx.ops.symbolic("com.microsoft::Inverse", [matrices], dtype=matrices.dtype, shape=shape, version=1)


@decomposition_of("aten.linalg_inv_ex.default")
def _inverse_and_errors(matrices: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    return _inverse(matrices), _no_errors(matrices)


@decomposition_of("aten.linalg_solve.default")
def _solve(matrices: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    inverse = _inverse(matrices.double())
    vectors = right.ndim == 1 or (right.ndim == matrices.ndim - 1 and right.shape == matrices.shape[:-1])
    if vectors:
        return (inverse @ right.double().unsqueeze(-1)).squeeze(-1).to(right.dtype)
    return _product(inverse, right, left)


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
    if matrices.is_complex() or not hasattr(torch.onnx, "ops"):  # before torch 2.8
        return NotImplemented
    name, shape = f"{TORCH_DOMAIN}::Cholesky", list(matrices.shape)
    attributes: dict[str, Any] = {"upper": int(upper)}
    return torch.onnx.ops.symbolic(name, (matrices,), attributes, dtype=matrices.dtype, shape=shape, version=1)


@decomposition_of("aten.linalg_cholesky_ex.default")
def _cholesky_and_errors(matrices: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    factor = _cholesky(matrices, upper)
    return NotImplemented if factor is NotImplemented else (factor, _no_errors(matrices))


@decomposition_of("aten.linalg_qr.default")
def _qr(matrices: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """QR by Householder reflections, with LAPACK's signs: H = I - 2 v v' / v'v maps x to -sign(x[0]) |x| e."""
    rows, columns = _known(matrices.shape[-2]), _known(matrices.shape[-1])
    if rows is None or columns is None:
        return NotImplemented
    right = matrices.double()
    left = torch.eye(rows, dtype=torch.float64).expand(*matrices.shape[:-1], rows)
    positions = torch.arange(rows)
    for column in range(min(rows - 1, columns)):
        vector = torch.where(positions >= column, right[..., column], 0.0)
        first, below = vector[..., column], torch.where(positions > column, vector, 0.0)
        norm = (vector * vector).sum(-1).sqrt()
        target = torch.where(first < 0, norm, -norm).unsqueeze(-1)
        vector = torch.where(positions == column, vector - target, vector)
        length = (vector * vector).sum(-1)
        reflects = (below != 0).any(-1)
        factor = torch.where(reflects, 2 / torch.where(reflects, length, 1.0), 0.0)[..., None, None]
        vector = vector.unsqueeze(-1)
        right = right - factor * vector * (vector.mT @ right)
        left = left - factor * (left @ vector) * vector.mT
    width = rows if mode == "complete" else min(rows, columns)
    right = right[..., :width, :].triu().to(matrices.dtype)
    return (matrices.new_empty(0) if mode == "r" else left[..., :width].to(matrices.dtype)), right


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
    exponent, result = abs(exponent), None
    if exponent == 0:
        return torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand(matrices.shape)
    while exponent:
        if exponent % 2:
            result = base if result is None else result @ base
        exponent //= 2
        base = base @ base if exponent else base
    return base if result is None else result


def _known(size: int | torch.SymInt) -> int | None:
    return size if isinstance(size, int) and 0 < size <= _LARGEST else None


@decomposition_of("aten.linalg_vander.default")
def _powers(values: Tensor, **options: int | None) -> Tensor:
    """Powers 0, 1, 2, ... of each number, by products; `N` of them, by default as many as there are numbers."""
    return _vander(values, options.get("N"), increasing=True)


@decomposition_of("aten.vander.default")
def _vander(values: Tensor, count: int | None = None, increasing: bool = False) -> Tensor:
    length = values.shape[-1] if count is None else count
    powers = [torch.ones_like(values)]
    while len(powers) < length:
        powers.append(powers[-1] * values)
    chosen = powers[:length]
    return torch.stack(chosen if increasing else chosen[::-1], -1)
