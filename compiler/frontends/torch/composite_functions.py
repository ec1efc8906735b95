"""Replacements, during capture, of PyTorch functions whose composite form fixes a size or depends on values.

- `istft` fixes the number of frames; here `fold` overlap-adds any number of blocks.
- `cdist` uses matmuls above 25 rows and differences below, which fixes the range of a dynamic number of rows.
- `cov` and `corrcoef` read a value to warn of too few observations.
- torchvision's `batched_nms` chooses between two methods by the number of boxes, which may be computed. Its code is
  replaced, since models import it by name.
- `lstsq` returns residuals only for matrices of full rank, and with some drivers; here it returns none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BY_DIFFERENCES = 2  # compute_mode "donot_use_mm_for_euclid_dist"


def composites_captured() -> AbstractContextManager[None]:
    """Context in which models call the replacements in this file."""
    import torch

    functions: Any = torch._VF
    boxes = sys.modules.get("torchvision.ops.boxes")
    return replaced(
        [
            (torch, "istft", _istft),
            (torch, "cov", _cov),
            (torch.Tensor, "cov", _cov),
            (torch, "corrcoef", _corrcoef),
            (torch.Tensor, "corrcoef", _corrcoef),
            (torch.linalg, "lstsq", _lstsq),
            (functions, "cdist", _cdist),
            *([] if boxes is None else [(boxes.batched_nms, "__code__", lambda _: _batched_nms.__code__)]),
        ]
    )


@contextmanager
def replaced(positions: Sequence[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Context in which each (owner, name) is replaced by the third item applied to the original."""
    originals = [
        (owner, name, getattr(owner, name) if isinstance(owner, FunctionType) else vars(owner).get(name))
        for owner, name, _ in positions
    ]
    try:
        for owner, name, replacement in positions:
            setattr(owner, name, replacement(getattr(owner, name)))
        yield
    finally:
        for owner, name, original in originals:
            if original is None:  # inherited, or looked up elsewhere in torch
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _cdist(original: Callable[..., Any]) -> Callable[..., Any]:
    def cdist(first: Tensor, second: Tensor, p: float, mode: int | None) -> Any:
        return original(first, second, p, _BY_DIFFERENCES)

    return cdist


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Any:
    """Move the boxes of each class apart, so that they do not overlap those of other classes."""
    import torch
    from torchvision.ops.boxes import nms

    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # also of no boxes
    return nms(boxes + (idxs.to(boxes) * (largest + 1)).unsqueeze(1), scores, iou_threshold)


def _cov(original: Callable[..., Any]) -> Callable[..., Any]:
    def cov(input: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
        if input.ndim > 2 or fweights is not None or aweights is not None:
            return original(input, correction=correction, fweights=fweights, aweights=aweights)
        return _covariance(input, correction)

    return cov


def _corrcoef(_: Callable[..., Any]) -> Callable[..., Any]:
    def corrcoef(input: Tensor) -> Tensor:
        covariance = _covariance(input, 1)
        if covariance.ndim == 0:
            return covariance / covariance
        deviations = covariance.diagonal().real.sqrt()
        ratio = covariance / deviations.unsqueeze(1) / deviations
        return ratio if ratio.is_complex() else ratio.clamp(-1, 1)

    return corrcoef


def _covariance(values: Tensor, correction: int) -> Tensor:
    """Return the covariance matrix of variables in rows; a scalar for one variable."""
    import torch

    values = values if values.is_floating_point() or values.is_complex() else values.to(torch.get_default_dtype())
    rows = values if values.ndim == 2 else values.reshape(1, -1)
    centered = rows - rows.mean(1, keepdim=True)
    covariance = centered @ centered.mH / (rows.shape[1] - correction)
    alone = isinstance(rows.shape[0], int) and rows.shape[0] == 1
    return covariance.reshape(()) if alone else covariance


def _lstsq(original: Callable[..., Any]) -> Callable[..., Any]:
    def lstsq(input: Tensor, b: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
        import torch

        if input.is_complex():
            return original(input, b, rcond, driver=driver)
        is_vector = b.ndim == 1 or b.ndim == input.ndim - 1
        right = (b.unsqueeze(-1) if is_vector else b).double()
        results: Any = torch.return_types
        larger: Any = torch.sym_max  # `max` would compare dynamic sizes
        unit = torch.finfo(input.dtype).eps * larger(*input.shape[-2:])
        wide, ratio = input.double(), torch.full((), unit if rcond is None else rcond, dtype=torch.float64)
        solution = (torch.linalg.pinv(wide, rtol=ratio) @ right).to(b.dtype)
        rank, none = torch.linalg.matrix_rank(wide, rtol=ratio), input.new_empty(0)
        return results.linalg_lstsq((solution.squeeze(-1) if is_vector else solution, none, rank, none))

    return lstsq


def _istft(original: Callable[..., Any]) -> Callable[..., Any]:
    def istft(
        input: Tensor,
        n_fft: int,
        hop_length: int | None = None,
        win_length: int | None = None,
        window: Tensor | None = None,
        center: bool = True,
        normalized: bool = False,
        onesided: bool | None = None,
        length: int | None = None,
        return_complex: bool = False,
    ) -> Any:
        import torch
        from torch.nn import functional

        whole = input.shape[-2] == n_fft if onesided is None else not onesided
        if whole or return_complex or input.ndim not in (2, 3) or not input.is_complex():
            options = (hop_length, win_length, window, center, normalized, onesided, length, return_complex)
            return original(input, n_fft, *options)
        width = n_fft if win_length is None else win_length
        factor = torch.ones(width, dtype=input.real.dtype) if window is None else window
        before = (n_fft - width) // 2
        factor = functional.pad(factor, (before, n_fft - width - before)).unsqueeze(-1)
        batch = input if input.ndim == 3 else input.unsqueeze(0)
        blocks = torch.fft.irfft(batch, n_fft, dim=-2, norm="ortho" if normalized else "backward") * factor
        squares = (factor * factor).expand(1, n_fft, blocks.shape[-1])
        step, cut = (n_fft // 4 if hop_length is None else hop_length), (n_fft // 2 if center else 0)
        signal = _added_up(blocks, step, cut, length) / _added_up(squares, step, cut, length)
        if isinstance(length, int) and isinstance(signal.shape[-1], int):
            signal = functional.pad(signal, (0, length - signal.shape[-1]))
        return signal if input.ndim == 3 else signal.squeeze(0)

    return istft


def _added_up(blocks: Tensor, step: int, cut: int, length: int | None) -> Tensor:
    """Overlap-add blocks (batch, size, count) with hop `step`, without the first `cut` samples of the sum.

    The result has `length` samples if available; without a length, `cut` samples are also dropped at the end.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true
    from torch.nn import functional

    size, count = blocks.shape[-2:]
    natural = size + step * (count - 1) - 2 * cut
    target = natural if length is None else length

    def fold(samples: int, padding: int) -> Tensor:
        found = functional.fold(blocks, (1, samples), (1, size), padding=(0, padding), stride=(1, step))
        return found.flatten(1)

    # If fold expects exactly this many blocks for the length, nothing is computed and then dropped.
    if statically_known_true((target + 2 * cut - size) // step + 1 == count):
        return fold(target, cut)
    return fold(natural + 2 * cut, 0)[:, cut : cut + target]
