"""Singular values and vectors, eigenvalues of symmetric matrices, and what is computed from them, in float64.

Vectors are determined up to their signs, which differ from LAPACK's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of
from compiler.frontends.torch.operators.linear_algebra import larger, smaller
from compiler.frontends.torch.own_operators import own_operator_with_results


@decomposition_of("aten.linalg_svd.default")
def _svd(matrices: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A = U S V'. Rotations make the columns of A V orthogonal; a QR factorization of them, the longest one first,
    completes the columns for singular values of zero."""
    if matrices.is_complex():
        return NotImplemented
    rows, columns = matrices.shape[-2:]
    rotated, turned = _rotations("OrthogonalRows", matrices.mT)
    values, order = torch.linalg.vector_norm(rotated, dim=-1).sort(-1, descending=True)
    count = smaller(rows, columns)
    width = rows if full_matrices else count
    shapes = [[*matrices.shape[:-1], width], [*matrices.shape[:-2], width, count]]
    longest, complete = _rows(rotated, _first(order, count)).mT, int(full_matrices)
    left, right = own_operator_with_results("QR", [longest], [torch.float64] * 2, shapes, complete=complete)
    diagonal = (right * torch.eye(width, count, dtype=torch.float64)).sum(-1, keepdim=True)
    left = left * torch.where(diagonal < 0, -1.0, 1.0).mT
    turned = _rows(turned, order if full_matrices else _first(order, count))
    dtype = matrices.dtype
    return left.to(dtype), _first(values, count).to(dtype), turned.to(dtype)


def _first(values: Tensor, count: Any) -> Tensor:
    """Return the first values of each row; slicing would compare the count with a dynamic size."""
    return values.index_select(-1, torch.arange(count))


def _rows(matrices: Tensor, positions: Tensor) -> Tensor:
    """Return rows of stacked matrices."""
    return matrices.gather(-2, positions.unsqueeze(-1).expand(*positions.shape, matrices.shape[-1]))


@decomposition_of("aten._linalg_svd.default")
def _svd_kernel(
    matrices: Tensor, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    if compute_uv:
        return _svd(matrices, full_matrices)
    empty = matrices.new_empty(0)
    return empty, _singular_values(matrices), empty


@decomposition_of("aten.svd.default")
def _thin_svd(matrices: Tensor, some: bool = True, compute_uv: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    if not compute_uv or matrices.is_complex():
        return NotImplemented
    left, values, right = _svd(matrices, not some)
    return left, values, right.mT


@decomposition_of("aten.linalg_svdvals.default")
def _singular_values(matrices: Tensor, *, driver: str | None = None) -> Tensor:
    if matrices.is_complex():
        return NotImplemented
    rotated, _ = _rotations("OrthogonalRows", matrices.mT)
    values, _ = torch.linalg.vector_norm(rotated, dim=-1).sort(-1, descending=True)
    return _first(values, smaller(*matrices.shape[-2:])).to(matrices.dtype)


@decomposition_of("aten.linalg_eigh.default")
def _eigh(matrices: Tensor, UPLO: str = "L") -> tuple[Tensor, Tensor]:  # noqa: N803
    if matrices.is_complex():
        return NotImplemented
    diagonal, turned = _rotations("Diagonalized", _symmetric(matrices, UPLO))
    values, order = diagonal.diagonal(dim1=-2, dim2=-1).sort(-1)
    vectors = _rows(turned, order).mT
    return values.to(matrices.dtype), vectors.to(matrices.dtype)


def _symmetric(matrices: Tensor, triangle: str) -> Tensor:
    """The symmetric matrices of which one triangle is given, "L" or "U"; the other one is not read."""
    lower = matrices.tril(-1) if triangle.upper() == "L" else matrices.triu(1).mT
    return lower + lower.mT + matrices * torch.eye(matrices.shape[-1], dtype=matrices.dtype)


@decomposition_of("aten._linalg_eigh.default")
def _eigh_kernel(matrices: Tensor, UPLO: str = "L", compute_v: bool = True) -> tuple[Tensor, Tensor]:  # noqa: N803
    return _eigh(matrices, UPLO)


@decomposition_of("aten.linalg_eigvalsh.default")
def _eigenvalues(matrices: Tensor, UPLO: str = "L") -> Tensor:  # noqa: N803
    return NotImplemented if matrices.is_complex() else _eigh(matrices, UPLO)[0]


@decomposition_of("aten.linalg_pinv.atol_rtol_tensor", "aten.linalg_pinv.atol_rtol_float")
def _pseudo_inverse(matrices: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    if matrices.is_complex():
        return NotImplemented
    wide = matrices.double()
    left, values, right = _svd(_symmetric(wide, "L") if hermitian else wide, full_matrices=False)
    kept = values > _tolerance(matrices, values, atol, rtol)
    factors = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return ((right.mT * factors.unsqueeze(-2)) @ left.mT).to(matrices.dtype)


@decomposition_of("aten.linalg_pinv.default", "aten.linalg_pinv.rcond_tensor", "aten.pinverse.default")
def _pseudo_inverse_of_ratio(matrices: Tensor, rcond: Any = 1e-15, hermitian: bool = False) -> Tensor:
    return _pseudo_inverse(matrices, rtol=rcond, hermitian=hermitian)


@decomposition_of("aten.linalg_matrix_rank.atol_rtol_tensor", "aten.linalg_matrix_rank.atol_rtol_float")
def _rank(matrices: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    if matrices.is_complex():
        return NotImplemented
    wide = matrices.double()
    values = _singular_values(_symmetric(wide, "L") if hermitian else wide)
    return (values > _tolerance(matrices, values, atol, rtol)).sum(-1)


def _tolerance(matrices: Tensor, values: Tensor, atol: Any, rtol: Any) -> Tensor:
    """Return the bound below which singular values count as zero; `rtol` is relative to the largest one."""
    if rtol is None:
        unit = torch.finfo(matrices.dtype).eps
        ratio = unit * larger(*matrices.shape[-2:])
        rtol = ratio if atol is None else torch.where(torch.as_tensor(atol) > 0, 0.0, ratio)
    largest = values.amax(-1, keepdim=True) * (rtol.unsqueeze(-1) if isinstance(rtol, Tensor) and rtol.ndim else rtol)
    if atol is None:
        return largest
    absolute = atol.unsqueeze(-1) if isinstance(atol, Tensor) else torch.full((), atol, dtype=values.dtype)
    return torch.maximum(largest, absolute)


@decomposition_of("aten.linalg_cond.default")
def _condition(matrices: Tensor, p: float | None = None) -> Tensor:
    if p not in (None, 2, -2) or matrices.is_complex():
        return NotImplemented
    values = _singular_values(matrices)
    return values[..., -1] / values[..., 0] if p == -2 else values[..., 0] / values[..., -1]


@decomposition_of("aten.linalg_matrix_norm.str_ord", "aten.linalg_matrix_norm.default")
def _matrix_norm(
    matrices: Tensor,
    ord: Any = "fro",
    dim: tuple[int, int] = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if ord not in ("nuc", 2, -2) or matrices.is_complex() or dtype not in (None, matrices.dtype):
        return NotImplemented
    values = _singular_values(matrices.movedim(tuple(dim), (-2, -1)))
    found = values.sum(-1) if ord == "nuc" else values[..., 0 if ord == 2 else -1]
    axes = sorted(axis % matrices.ndim for axis in dim)
    return found.unsqueeze(axes[0]).unsqueeze(axes[1]) if keepdim else found


def _rotations(operator: str, matrices: Tensor) -> tuple[Tensor, Tensor]:
    shapes = [list(matrices.shape), [*matrices.shape[:-1], matrices.shape[-2]]]
    rotated, turned = own_operator_with_results(operator, [matrices], [torch.float64] * 2, shapes)
    return rotated, turned
