"""Decompositions of operators on complex numbers, against torch's operators."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

import compiler
from compiler.frontends.torch.decomposition import decomposition

_ORDER = torch.tensor([1, 0, 2])
_MASK = torch.tensor([True, False, True])
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "select.int": (0, 1),
    "unsqueeze.default": (1,),
    "squeeze.default": (),
    "squeeze.dims": ([0, 1],),
    "expand.default": ([2, 3, 3],),
    "repeat.default": ([2, 1],),
    "tile.default": ([2, 1],),
    "index.Tensor": ([None, _ORDER],),
    "index_select.default": (0, _ORDER),
    "gather.default": (0, _ORDER[None]),
    "constant_pad_nd.default": ([1, 2],),
    "pad.default": ([1, 2],),
    "unfold.default": (1, 2, 1),
    "diagonal.default": (),
    "diag_embed.default": (),
    "trace.default": (),
    "tril.default": (),
    "triu.default": (),
    "split.Tensor": (2, 1),
    "split_with_sizes.default": ([1, 2], 1),
    "unbind.int": (1,),
    "zeros_like.default": (),
    "ones_like.default": (),
    "masked_fill.Scalar": (_MASK, 2.0),
    "isnan.default": (),
    "isinf.default": (),
    "isfinite.default": (),
    "eq.Scalar": (-1.0,),
    "ne.Scalar": (-1.0,),
    "cumsum.default": (1,),
    "cumprod.default": (0,),
    "prod.dim_int": (1,),
    "prod.default": (),
    "var.correction": ([1],),
    "std.correction": ([0],),
    "linalg_vector_norm.default": (2, [1]),
    "square.default": (),
    "pow.Tensor_Scalar": (3,),
    **{f"{name}.default": () for name in ("sgn", "exp", "expm1", "log", "log2", "log10", "sqrt", "rsqrt", "sigmoid")},
    **{f"{name}.default": () for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("conjugated", [False, True])
def test_of_one_tensor(name: str, conjugated: bool) -> None:
    values = torch.randn(3, 3, dtype=torch.complex64)
    values[0, 0] = 0.0 if name == "pow.Tensor_Scalar" else -1.0
    check(name, values.conj() if conjugated else values, *ARGUMENTS[name])


def test_of_two_tensors_and_powers() -> None:
    first, second = torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    check("mm.default", first[0], second[0].conj())
    check("addmm.default", first[0], first[1], second[0], beta=0.5, alpha=2)
    check("bmm.default", first, second)
    check("baddbmm.default", first[:1], first, second)
    check("linear.default", first, second[0], first[0, 0])
    check("dot.default", first[0, 0], second[0, 0])
    check("vdot.default", first[0, 0].conj(), second[0, 0])
    check("addcmul.default", first, first, second, value=0.5)
    check("lerp.Scalar", first, second, 0.3)
    check("where.self", _MASK, first, second)
    check("where.self", _MASK, first.real, second)
    check("where.ScalarOther", _MASK, first, 2)
    check("eq.Tensor", first, first.real)
    check("ne.Tensor", first, second)
    check("mul.Scalar", first, 2 - 3j)
    check("mul.Scalar", first.conj(), 2.5)
    check("mul.Scalar", torch.arange(3), 0.5j)
    check("mul.Tensor", torch.arange(3.0), 0.5j)
    for exponent in (0.5, 0.5 + 0j, -1, 1j, 2 - 0.5j):
        check("pow.Tensor_Scalar", first, exponent)
    check("pow.Tensor_Tensor", first, second)
    check("pow.Tensor_Tensor", first.real, second)
    check("pow.Scalar", 2.0, second)
    check("copy.default", first, second[:1, :1].conj())
    check("slice_scatter.default", first, second[:, :2], -2, -2)
    check("select_scatter.default", first, second[0], 0, 1)
    check("index_put.default", first, [_ORDER[:2]], second)
    check("index_add.default", first, 0, _ORDER[:2], second, alpha=2)
    check("scatter.src", first, 1, _ORDER[None, None], second)
    check("scatter_add.default", first, 1, _ORDER[None, None], second)


def test_equations_and_zeros() -> None:
    first, second = torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    check("einsum.default", "bij,bkj->bik", [first, second.conj()])
    check("einsum.default", "bij->ji", [first])
    check("zeros.default", [2, 3], dtype=torch.complex64)
    check("new_zeros.default", first, [2])
    check("_neg_view.default", first.conj().imag)


def test_square_roots_close_to_the_axes_and_of_extreme_sizes() -> None:
    parts = [0.0, 1.0, 1e-3, 1e-6, 1e-20, 1e-30, 1e20, 3e38, math.inf]
    signed = [*parts, *(-each for each in parts), math.nan]
    values = torch.tensor([complex(*each) for each in itertools.product(signed, signed)], dtype=torch.complex64)
    found, wanted = decomposition("aten.sqrt.default")(values), values.sqrt()
    for ours, theirs in ((found.real, wanted.real), (found.imag, wanted.imag)):
        known = (
            ~theirs.isnan()
        )  # torch's is NaN in both parts where one part of the input is, unless the other is infinite
        torch.testing.assert_close(ours[known], theirs[known], rtol=1e-6, atol=1e-38)
        assert torch.equal(ours[known].signbit(), theirs[known].signbit())
        assert ours[~known].isnan().sum() >= (~known).sum() - 4  # (NaN, +-0)


def test_extreme_exponents_and_logarithms() -> None:
    check("exp.default", torch.tensor([100 + 0j, 89 + 1.5j, -200 + 1j, -math.inf + 1j]))
    check("log.default", torch.tensor([3e38 + 3e38j, 1e-30 + 1e-30j, 0j, math.inf + 1j, -1e-30 + 0j]))
    check("tanh.default", torch.tensor([100 + 1j, -50 + 2j, 1e-10 + 1e-10j, 1.55j]))
    check("sgn.default", torch.tensor([0j, 3e38 + 3e38j, 1e-30 + 1e-30j]))
    check("pow.Tensor_Scalar", torch.tensor([0j, 1 + 1j]), 1 + 2j)


def check(name: str, *arguments: Any, **named: Any) -> None:
    packet, overload = name.split(".")
    wanted = getattr(getattr(torch.ops.aten, packet), overload)(*arguments, **named)
    found = decomposition(f"aten.{name}")(*arguments, **named)
    for ours, theirs in zip(_pytree.tree_leaves(found), _pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(ours, theirs.resolve_conj(), rtol=1e-5, atol=1e-5)


def test_real_numbers_are_left_to_the_exporter() -> None:
    own = ("cumprod", "isnan", "expm1", "linalg_vector_norm", "sgn", "squeeze")
    for name, arguments in ARGUMENTS.items():
        if name.split(".")[0] not in own:
            assert decomposition(f"aten.{name}")(torch.ones(3, 3), *arguments) is NotImplemented, name


class _Spectrum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        z = torch.fft.rfft(x)[:, 1:-1]  # the ends are real: the sign of their zeros decides which root it is
        return tuple(torch.view_as_real(each) for each in self.computed(z)) + (z.var(-1), z.norm(), z != 0)

    def computed(self, z: torch.Tensor) -> list[torch.Tensor]:
        w = torch.where(z.real > 0, z, 0)
        return [
            z.cumsum(-1),
            (z / 4).tanh(),
            (z / 4).sin(),
            z.sqrt(),
            z.sgn(),
            w + 1,
            z * torch.exp(1j * z.real),
            z**-0.5,
        ]


def test_of_a_dynamic_length() -> None:
    length = torch.export.Dim("length", min=8)
    module = compiler.compile(
        _Spectrum().eval(), example_inputs=(torch.randn(2, 16),), dynamic_shapes=({1: 2 * length},), threads=1
    )
    for size in (16, 22):
        x = torch.randn(2, size)
        for ours, theirs in zip(module.run([x.numpy()]).values(), _Spectrum()(x), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-4, atol=2e-4)


TRANSFORMS: dict[str, dict[str, Any]] = {
    **{name: {"n": 9, "dim": 1} for name in ("fft", "ifft")},
    **{name: {"n": 12, "dim": 1} for name in ("irfft", "hfft")},
    **{name: {"s": (10, 4)} for name in ("fft2", "ifftn")},
    **{name: {"s": (10, 16)} for name in ("irfft2", "irfftn")},
}


class Transforms(torch.nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        values = torch.complex(x, x.flip(-1) * 2)
        found = [getattr(torch.fft, name)(values, **options) for name, options in TRANSFORMS.items()]
        return [torch.view_as_real(each) if each.is_complex() else each for each in found]


class Solutions(torch.nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        matrices = torch.complex(x.mT @ x + torch.eye(x.shape[-1]), torch.ones(x.shape[-1], x.shape[-1]))
        right = torch.complex(x.mT, x.mT.flip(-1))
        found = [
            torch.linalg.inv(matrices),
            torch.linalg.solve(matrices, right),
            torch.linalg.solve(matrices, right[..., 0]),
            torch.linalg.solve(matrices, right.mT, left=False).resolve_conj(),
        ]
        return [torch.view_as_real(each) for each in found]


@pytest.mark.parametrize("model", [Transforms(), Solutions()], ids=lambda model: type(model).__name__)
def test_of_dynamic_sizes(model: torch.nn.Module) -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    x = torch.randn(2, 5, 6)
    module = compiler.compile(model.eval(), example_inputs=(x,), dynamic_shapes=dynamic, threads=1)
    for given in (x, torch.randn(3, 4, 6)):
        for found, wanted in zip(module.run([given]).values(), model(given), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
