"""Kernels of recurrent mixers."""

from __future__ import annotations

import numpy as np
from tvm import relax

from schedules.sequence_mixers import Columns, Convolution, causal_convolution
from tests.schedules.harness import AVX512, assembly, scheduled


def test_functions_of_vectors_that_a_kernel_states_itself_call_no_library() -> None:
    """LLVM makes a libm call per lane of a vector's exp: silu took most of the time of a convolution."""

    def build(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        weight, bias, window = (relax.const(np.ones(shape, np.float32)) for shape in ((4, 64), (64,), (3, 64)))
        given = Convolution(x=Columns(x), weight=weight, bias=bias, window=window, activated=True)
        return causal_convolution(builder, given)[0]

    mod, _ = scheduled(build, [((8, 64), "float32")], AVX512)
    code = assembly(mod, AVX512)
    assert "%zmm" in code
    assert "expf" not in code
