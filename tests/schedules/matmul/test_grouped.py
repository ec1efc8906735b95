"""Products with weights of 4 and 8 bits and one scale per group, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from schedules.ir.tir import tirx, tvm
from schedules.matmul.grouped import matmul_grouped, pack_words, panel_width
from schedules.matmul.packed_operand import pack_panels
from tests.schedules.harness import AVX512, Array, assembly, normal, runnable, scheduled, target_of, virtual_machine

EXTENTS = st.sampled_from([1, 2, 7, 16, 33, 64, 70, 132])
LIMITS = {4: (-8, 8), 8: (-128, 128)}


class Weight:
    """Random integers, scales and zero points."""

    def __init__(self, depth: int, columns: int, group: int, bits: int, *, zeros: bool, scale: str = "float32") -> None:
        generator = np.random.default_rng(7)
        groups = -(-depth // group)
        self.group, self.bits = group, bits
        self.values = generator.integers(*LIMITS[bits], (depth, columns)).astype(np.int8)
        self.scales = generator.uniform(0.5, 2, (groups, columns)).astype(scale)
        self.zeros = generator.integers(-4, 5, (groups, columns)).astype(np.float32) if zeros else None

    def wide(self) -> Array:
        depth = len(self.values)
        scales = np.repeat(self.scales.astype(np.float64), self.group, 0)[:depth]
        zeros = 0 if self.zeros is None else np.repeat(self.zeros.astype(np.float64), self.group, 0)[:depth]
        return (self.values - zeros) * scales

    def product(self, target: str) -> Any:
        """A function that builds data @ weight, and one added."""
        columns = self.values.shape[1]
        width = panel_width(columns, target_of(target).machine)
        pack = pack_words if self.bits == 4 else pack_panels
        operands = [
            pack(self.values, width),
            *(pack_panels(each, width) for each in (self.scales, self.zeros) if each is not None),
        ]

        def build(builder: Any, data: Any) -> Any:
            call = builder.call_te(
                matmul_grouped,
                data,
                *(relax.const(tvm.runtime.tensor(each)) for each in operands),
                columns=columns,
                group=self.group,
                primfunc_name_hint="matmul",
                primfunc_attrs={"op_pattern": 4},
            )
            return builder.emit(relax.op.add(builder.emit(call), relax.const(1.0, "float32")))

        return build


def check(weight: Weight, data: Array, target: str, shape: tuple[Any, ...] | None = None) -> None:
    mod, report = scheduled(weight.product(target), [(shape or data.shape, "float32")], target)
    assert report.by_rule().get("matmul-grouped"), report
    machine = virtual_machine(mod, target)
    got = machine["main"](tvm.runtime.tensor(data)).numpy()
    wide = weight.wide()
    bound = 1e-6 * (np.abs(data.astype(np.float64)) @ np.abs(wide) + 1)
    if weight.zeros is not None:  # integers and zero points are multiplied apart
        bound *= 4
    assert np.all(np.abs(got - (data.astype(np.float64) @ wide + 1)) <= bound)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("target", runnable())
@settings(max_examples=4, deadline=None)
@given(rows=EXTENTS, depth=EXTENTS, columns=EXTENTS, group=st.sampled_from([16, 32]))
def test_any_size(target: str, zeros: bool, bits: int, rows: int, depth: int, columns: int, group: int) -> None:
    check(Weight(depth, columns, group, bits, zeros=zeros), normal((rows, depth)), target)


@pytest.mark.parametrize("target", runnable())
def test_symbolic_rows_and_float16_scales(target: str) -> None:
    weight = Weight(64, 40, 32, 4, zeros=False, scale="float16")
    check(weight, normal((5, 3, 64)), target, (tirx.Var("n", "int64"), 3, 64))


@pytest.mark.skipif(AVX512 not in runnable(), reason="this machine has no AVX-512")
def test_four_bits_are_looked_up() -> None:
    mod, _ = scheduled(Weight(64, 64, 32, 4, zeros=False).product(AVX512), [((1, 64), "float32")], AVX512)
    text = assembly(mod, AVX512)
    assert text.count("vpermps") + text.count("vpermd") >= 32
    assert "vcvtdq2ps" not in text
