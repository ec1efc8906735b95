from __future__ import annotations

import pytest

from compiler.profiling.attribution import KINDS, RUNTIME, kind_of, operators_of


@pytest.mark.parametrize(
    ("kernel", "operators", "kind"),
    [
        ("fused_conv2d1_add1_relu", ("conv2d", "add", "relu"), "convolution"),
        ("conv2d_transpose", ("conv2d_transpose",), "convolution"),
        ("max_pool2d", ("max_pool2d",), "pooling"),
        ("fused_layer_norm2_reshape", ("layer_norm", "reshape"), "normalization"),
        ("fused_NT_matmul1_add", ("nt_matmul", "add"), "matmul"),
        ("fused_reshape12_transpose3", ("reshape", "transpose"), "data movement"),
        ("fused_conv2d_batch_norm_relu6", ("conv2d", "batch_norm", "relu6"), "convolution"),
        ("tir_tanh", ("tanh",), "elementwise"),
        ("mean", ("mean",), "reduction"),
        ("vm.builtin.alloc_tensor", (), RUNTIME),
        ("shape_func1", (), RUNTIME),
    ],
)
def test_names_tell_operators_and_kind(kernel: str, operators: tuple[str, ...], kind: str) -> None:
    assert operators_of(kernel) == operators
    assert kind_of(kernel) == kind
    assert kind in KINDS


def test_any_name_has_a_kind() -> None:
    for name in ("", "_", "my_own_kernel", "fused_", "0"):
        assert kind_of(name) in KINDS
