"""An estimate of what the Cortex-M spends on its part of a network, in its own cycles.

Vela's cycles say nothing of it. The figures are rough ones for a Cortex-M55 with Helium, which works on 128 bits in two
cycles; nothing has been measured. They keep a search from handing work to the processor that costs more there than it
saves on the accelerator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from schedules.ir.tvm_types import Expr
from targets.ethos_u.layout import channels_last
from targets.ethos_u.segments import Port, Segment
from targets.ethos_u.steps import Unsupported
from targets.ethos_u.view import operator_name, static_shape

_MOVED = 3.0  # a byte that is read and written apart from its neighbors: a load, a store, an address
_COPIED = 0.25  # a byte of a row that is copied
_CONVERTED = 2.5  # an element between float32 and int8: scaled, rounded, saturated, four at a time
_COMPUTED = 4.0  # an element of any other float operator
_PRODUCT = 0.75  # a float multiply-add of a product or convolution
_PRODUCTS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul")
_CONVERSIONS = ("relax.quantize", "relax.dequantize", "relax.astype")


def processor_cycles(left: Sequence[Expr], parts: Sequence[Segment]) -> int:
    """Cycles of the calls that stay on the processor, and of handing tensors over."""
    ports = sum(_handed(port) for part in parts for port in (*part.inputs, *part.outputs))
    return round(sum(_call(value) for value in left) + ports)


def _call(value: Expr) -> float:
    name, sizes = operator_name(value), _sizes(value)
    if sizes is None:
        return 0.0
    count = math.prod(sizes)
    if name in _CONVERSIONS:
        return _CONVERTED * count
    if name in _PRODUCTS and (weight := _sizes(value.args[1])) is not None and weight:
        depth = weight[-2] if name == "relax.matmul" and len(weight) > 1 else math.prod(weight[1:])
        return _PRODUCT * count * depth
    return _COMPUTED * count if name is not None else 0.0


def _handed(port: Port) -> float:
    """Bytes that change places: channels put last or first, and windows gathered."""
    shape = port.tensor.shape
    order = [axis for axis in channels_last(len(shape)) if shape[axis] != 1] if len(shape) > 1 else []
    moved = _MOVED * math.prod(shape) if port.last and order != sorted(order) else 0.0
    if port.arrangement is not None:
        moved += (_MOVED if port.arrangement.width > 1 else _COPIED) * math.prod(port.shape)
    return moved


def _sizes(expr: Expr) -> tuple[int, ...] | None:
    """None where they are dynamic."""
    try:
        return static_shape(expr)
    except Unsupported:
        return None
