"""Emit operators of `TORCH_DOMAIN` into a traced program: those for which ONNX has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.onnx.registry import TORCH_DOMAIN


def own_operators_supported() -> bool:
    """True if this version of torch can trace them (2.8 or later)."""
    return hasattr(torch.onnx, "ops")


def own_operator(
    operator: str, operands: Sequence[Tensor], dtype: torch.dtype, shape: Sequence[Any], /, **attributes: Any
) -> Tensor:
    """Emit an operator with one result. Raises UnsupportedModelError before torch 2.8."""
    (result,) = own_operator_with_results(operator, operands, [dtype], [shape], **attributes)
    return result


def own_operator_with_results(
    operator: str,
    operands: Sequence[Tensor],
    dtypes: Sequence[torch.dtype],
    shapes: Sequence[Sequence[Any]],
    /,
    **attributes: Any,
) -> Sequence[Tensor]:
    """Emit an operator with several results. Raises UnsupportedModelError before torch 2.8."""
    if not own_operators_supported():
        raise UnsupportedModelError([Refusal(operator, "model", f"needs torch 2.8 or later, not {torch.__version__}")])
    name = f"{TORCH_DOMAIN}::{operator}"
    return torch.onnx.ops.symbolic_multi_out(name, operands, attributes, dtypes=dtypes, shapes=shapes, version=1)
