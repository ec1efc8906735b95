"""regions: which values use the blocked layout, chosen by a minimum cut of conversions."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import relax

from compiler.passes.layout.plan_layout import Cut, plan_layout
from tests.compiler.passes.layout.test_plan_layout import CONTEXT, check_numbers, constant, conv, kernels, module

SHAPES: list[tuple[Any, ...]] = [(1, 16, 9, 9)]


def _block(builder: Any, data: Any, seed: int) -> Any:
    """A product of rows of channels: an operator on plain values."""
    rows = builder.emit(relax.op.permute_dims(data, [0, 2, 3, 1]))
    product = builder.emit(relax.op.matmul(rows, constant(24, 24, seed=seed)))
    return builder.emit(relax.op.permute_dims(product, [0, 3, 1, 2]))


def _stem_and_blocks(builder: Any, data: Any, *, convolution: bool) -> Any:
    """Residual blocks of products behind a convolution, as in a transformer; or of products and convolutions."""
    stream = conv(builder, data, 24, 16)
    for seed in range(3):
        inner = conv(builder, stream, 24, 24) if convolution else stream
        stream = builder.emit(relax.op.add(stream, _block(builder, inner, seed)))
    return stream


def test_a_residual_stream_of_products_is_unpacked_once() -> None:
    mod = module(SHAPES, lambda builder, data: _stem_and_blocks(builder, data, convolution=False))
    assert kernels(plan_layout(mod, CONTEXT)).count("unpack") == 1
    assert kernels(plan_layout(mod, CONTEXT)).count("pack") == 1  # of the input
    check_numbers(mod, SHAPES)


def test_a_residual_stream_that_convolutions_read_stays_blocked() -> None:
    mod = module(SHAPES, lambda builder, data: _stem_and_blocks(builder, data, convolution=True))
    found = kernels(plan_layout(mod, CONTEXT))
    assert found.count("relax.add") == 3
    assert found.count("unpack") == 4  # what each product reads, and the result


@pytest.mark.parametrize(("first", "expected"), [(3.0, {"t"}), (1.0, {"a", "t"}), (2.0, {"t"})])
def test_cut(first: float, expected: set[str]) -> None:
    """Among cuts of equal cost, the one with the fewest nodes on the second side."""
    cut = Cut()
    cut.edge("s", "a", first)
    cut.edge("a", "t", 2.0)
    assert cut.second_side("s", "t") == expected
