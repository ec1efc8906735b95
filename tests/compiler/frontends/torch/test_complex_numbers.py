"""Decompositions of operators on complex numbers, against torch's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree

from compiler.frontends.torch.decomposition import decompositions

_ORDER = torch.tensor([1, 0, 2])
_MASK = torch.tensor([True, False, True])
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "select.int": (0, 1),
    "unsqueeze.default": (1,),
    "squeeze.default": (),
    "squeeze.dims": ([0, 1],),
    "expand.default": ([2, 3, 3],),
    "repeat.default": ([2, 1],),
    "index.Tensor": ([None, _ORDER],),
    "index_select.default": (0, _ORDER),
    "gather.default": (0, _ORDER[None]),
    "constant_pad_nd.default": ([1, 2],),
    "pad.default": ([1, 2],),
    "unfold.default": (1, 2, 1),
    "diagonal.default": (),
    "tril.default": (),
    "triu.default": (),
    "split.Tensor": (2, 1),
    "split_with_sizes.default": ([1, 2], 1),
    "unbind.int": (1,),
    "zeros_like.default": (),
    "masked_fill.Scalar": (_MASK, 2.0),
    "pow.Tensor_Scalar": (3,),
    "exp.default": (),
    "log.default": (),
    "sqrt.default": (),
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("conjugated", [False, True])
def test_of_one_tensor(name: str, conjugated: bool) -> None:
    values = torch.randn(3, 3, dtype=torch.complex64)
    values[0, 0] = 0.0 if name == "pow.Tensor_Scalar" else -1.0
    check(name, values.conj() if conjugated else values, *ARGUMENTS[name])


def test_of_two_tensors_and_powers() -> None:
    first, second = torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    check("mm.default", first[0], second[0].conj())
    check("bmm.default", first, second)
    check("where.self", _MASK, first, second)
    check("pow.Tensor_Scalar", first, 0.5)
    check("mul.Scalar", first, 2 - 3j)
    check("mul.Scalar", first.conj(), 2.5)
    check("mul.Scalar", torch.arange(3), 0.5j)
    check("mul.Tensor", torch.arange(3.0), 0.5j)
    check("copy.default", first, second[:1, :1].conj())
    check("slice_scatter.default", first, second[:, :2], -2, -2)
    check("select_scatter.default", first, second[0], 0, 1)


def test_equations_and_zeros() -> None:
    first, second = torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    check("einsum.default", "bij,bkj->bik", [first, second.conj()])
    check("einsum.default", "bij->ji", [first])
    check("zeros.default", [2, 3], dtype=torch.complex64)
    check("new_zeros.default", first, [2])
    check("_neg_view.default", first.conj().imag)


def check(name: str, *arguments: Any, **named: Any) -> None:
    packet, overload = name.split(".")
    wanted = getattr(getattr(torch.ops.aten, packet), overload)(*arguments, **named)
    found = decompositions()[f"aten.{name}"](*arguments, **named)
    for ours, theirs in zip(_pytree.tree_leaves(found), _pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(ours, theirs.resolve_conj(), rtol=1e-5, atol=1e-5)


def test_real_numbers_are_left_to_the_exporter() -> None:
    for name, arguments in ARGUMENTS.items():
        assert decompositions()[f"aten.{name}"](torch.ones(3, 3), *arguments) is NotImplemented
