"""com.microsoft: GroupNorm and SkipGroupNorm, as in diffusion models optimized by ONNX Runtime."""

from __future__ import annotations

from compiler.frontends.onnx.operators.composition import Composer, composed, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, biased, channels_first, channels_last, swish
from compiler.frontends.onnx.values import TensorValue

_EPSILON = 1e-5


@composed("GroupNorm", domain=DOMAIN)
def group_norm(
    op: Composer,
    x: TensorValue,
    gamma: TensorValue,
    beta: TensorValue,
    *,
    groups: int,
    activation: int,
    channels_last: int = 1,
    epsilon: float = _EPSILON,
) -> TensorValue:
    """GroupNormalization with channels last (or first), and with `activation` 1 a SiLU, computed in float32."""
    return _normalized(op, x, gamma, beta, (groups, epsilon, activation), last=bool(channels_last))


@composed("SkipGroupNorm", domain=DOMAIN)
def skip_group_norm(
    op: Composer,
    x: TensorValue,
    gamma: TensorValue,
    beta: TensorValue,
    skip: TensorValue,
    bias: TensorValue | None = None,
    *,
    groups: int,
    activation: int,
    channels_last: int = 1,
    epsilon: float = _EPSILON,
) -> list[TensorValue]:
    """GroupNorm of x + skip + bias, and this sum; `skip` may lack the spatial axes."""
    spatial = range(1, len(x.shape) - 1) if channels_last else range(2, len(x.shape))
    if len(skip.shape) == 2:
        skip = op("Unsqueeze", skip, int64s(*spatial))
    if bias is not None and not channels_last:
        bias = op("Unsqueeze", bias, int64s(*range(1, len(x.shape) - 1)))
    total = biased(op, x, skip, bias)
    result = _normalized(op, total, gamma, beta, (groups, epsilon, activation), last=bool(channels_last))
    return [result, total]


def _normalized(
    op: Composer,
    x: TensorValue,
    gamma: TensorValue,
    beta: TensorValue,
    options: tuple[int, float, int],
    *,
    last: bool,
) -> TensorValue:
    groups, epsilon, activation = options
    if activation not in (0, 1):
        op.context.refuse(f"activation={activation} is not supported")
    # Scale and bias may be float32 where the data are float16.
    wide, scale, shift = (
        each if each.dtype == "float32" or x.dtype == gamma.dtype else op("Cast", each, to=1)
        for each in (x, gamma, beta)
    )
    data = channels_first(op, wide) if last else wide
    result = op("GroupNormalization", data, scale, shift, num_groups=groups, epsilon=epsilon)
    if activation:
        result = swish(op, result)
    result = channels_last(op, result) if last else result
    return result if result.dtype == x.dtype else op("Cast", result, to=op.number(x.dtype))
