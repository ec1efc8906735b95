"""Replacements, during capture, of transformers functions that convert a dynamic size to a number.

The selective scan of state space models (Mamba) is a Python loop over the sequence, which torch.export unrolls; the
replacement is a loop of any length.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.composite_functions import replaced

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def transformers_functions_captured() -> Iterator[None]:
    """Context in which transformers models call the replacements in this file."""
    replacements = [
        (module, name, replacement)
        for path, module in list(sys.modules.items())
        if path.startswith("transformers.models.")
        for name, replacement in _REPLACEMENTS.items()
        if callable(vars(module).get(name))
    ]
    with replaced(replacements):
        yield


def _scan(original: Any) -> Any:
    def scan(hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        length: Any = hidden_states.shape[-1]  # a symbol if dynamic
        if isinstance(length, int):
            return original(hidden_states, *arguments, **named)
        return _selective_scan(hidden_states, *arguments, **named)

    return scan


_REPLACEMENTS = {"mamba_selective_scan": _scan}


def _selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803  (as in transformers)
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """Like the scan in transformers, step by step: state = exp(A dt) state + B dt x; y = C state + D x.

    Args:
        hidden_states, dt, z: (batch, channels, length).
        A: (channels, states). B, C: (batch, states, length). D, delta_bias: (channels,).
    """
    import torch
    from torch._higher_order_ops.scan import scan
    from torch.nn import functional

    dtype = hidden_states.dtype
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = functional.softplus(dt)
    steps = dt.movedim(-1, 0).unsqueeze(-1)  # (length, batch, channels, 1)
    decays = torch.exp(A * steps)
    added = steps * B.movedim(-1, 0).unsqueeze(-2).float() * hidden_states.movedim(-1, 0).unsqueeze(-1).float()

    def step(state: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        decay, addition, output = parts
        state = (decay * state + addition).to(dtype)
        return state, (state @ output.unsqueeze(-1)).squeeze(-1)

    start = hidden_states.new_zeros((*hidden_states.shape[:2], A.shape[-1]))
    last, outputs = scan(step, start, (decays, added, C.movedim(-1, 0).to(dtype)))
    result = outputs.movedim(0, -1)
    if D is not None:
        result = result + hidden_states * D[None, :, None]
    if z is not None:
        result = result * functional.silu(z)
    return (result, last) if return_last_state else result
