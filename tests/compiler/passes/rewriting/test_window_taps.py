"""Outputs for which a filter tap reads the input, against an enumeration of all of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.passes.rewriting.constant_products import Window


@given(
    size=st.integers(1, 19),
    taps=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 15),
    before=st.integers(0, 30),
    after=st.integers(0, 30),
)
@settings(max_examples=300, deadline=None)
def test_a_tap_reads_the_input_for_a_run_of_outputs(
    size: int, taps: int, stride: int, dilation: int, before: int, after: int
) -> None:
    out = (size + before + after - (taps - 1) * dilation - 1) // stride + 1
    if out < 1:
        return
    window = Window(size, out, taps, stride, dilation, before, after)
    for index in range(taps):
        places = {o: o * stride + index * dilation - before for o in range(out)}
        inside = [o for o, place in places.items() if 0 <= place < size]
        tap = window.tap(index)
        assert tap.outputs == len(inside)
        if inside:
            assert (tap.first, tap.last, tap.start) == (inside[0], inside[-1] + 1, places[inside[0]])
