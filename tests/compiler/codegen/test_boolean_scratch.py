"""Scratch buffers of booleans hold bytes, and conditions on them are right in vectorized loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn
from torch.nn import functional
from tvm import tirx
from tvm.script import tirx as T

import compiler
from compiler.codegen.kernel_lowering import PIPELINE, bytes_for_booleans
from schedules.ir.tir import s_tir, structural_equal

ROWS = 8


@T.prim_func(s_tir=True)
def before(x: T.handle, z: T.handle, y: T.handle) -> None:
    n = T.int64()
    a = T.match_buffer(x, (n, T.int64(2)))
    b = T.match_buffer(z, (n, T.int64(2)), "bool")
    c = T.match_buffer(y, (n, T.int64(2)), "bool")
    for i in range(n):
        with T.sblock("row"):
            held = T.sblock_alloc_buffer((T.int64(2),), "bool")
            for j in T.vectorized(T.int64(2)):
                held[j] = a[i, j] > T.float32(0)
            for j in T.vectorized(T.int64(2)):
                c[i, j] = b[i, j] and held[j]


@T.prim_func(s_tir=True)
def expected(x: T.handle, z: T.handle, y: T.handle) -> None:
    n = T.int64()
    a = T.match_buffer(x, (n, T.int64(2)))
    b = T.match_buffer(z, (n, T.int64(2)), "bool")
    c = T.match_buffer(y, (n, T.int64(2)), "bool")
    for i in range(n):
        with T.sblock("row"):
            held = T.sblock_alloc_buffer((T.int64(2),), "int8")
            for j in T.vectorized(T.int64(2)):
                held[j] = T.Cast("int8", a[i, j] > T.float32(0))
            for j in T.vectorized(T.int64(2)):
                c[i, j] = b[i, j] and held[j] != T.int8(0)


def test_scratch_of_booleans_becomes_bytes() -> None:
    changed, named = (
        each.without_attr("global_symbol") for each in (before.with_body(bytes_for_booleans(before.body)), expected)
    )
    assert structural_equal(changed, named, map_free_vars=True)
    assert not structural_equal(before.without_attr("global_symbol"), named, map_free_vars=True)


def test_parameters_and_aliased_scratch_stay() -> None:
    held = tirx.decl_buffer([4], "bool", "held", layout=None)
    index = tirx.IntImm("int64", 0)
    address = tirx.call_intrin("handle", "tirx.address_of", tirx.BufferLoad(held, [index]))
    body = tirx.SeqStmt([tirx.AllocBuffer(held), tirx.Evaluate(address)])
    assert bytes_for_booleans(body).same_as(body)
    assert bytes_for_booleans(expected.body).same_as(expected.body)


CONDITIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "and": (tirx.And, np.logical_and),
    "or": (tirx.Or, np.logical_or),
    "not": (lambda p, q: tirx.Not(p), lambda p, q: ~p),
    "not, and": (lambda p, q: tirx.And(tirx.Not(p), q), lambda p, q: ~p & q),
    "copy": (lambda p, q: p, lambda p, q: p),
    "branch": (lambda p, q: tirx.if_then_else(p, q, tirx.Not(q)), lambda p, q: np.where(p, q, ~q)),
    "choice": (lambda p, q: tirx.Select(p, q, tirx.Not(q)), lambda p, q: np.where(p, q, ~q)),
}


def kernel(width: int, condition: Callable[[Any, Any], Any]) -> Any:
    """y = condition(x > 0, z), with x > 0 in a buffer of one row; each loop over a row is vectorized."""
    x, z, y = (
        tirx.decl_buffer([ROWS, width], dtype, name, layout=None)
        for dtype, name in (("float32", "x"), ("bool", "z"), ("bool", "y"))
    )
    held = tirx.decl_buffer([width], "bool", "held", layout=None)
    i, j, k = (tirx.Var(name, "int64") for name in "ijk")
    positive = tirx.BufferLoad(x, [i, j]) > tirx.FloatImm("float32", 0.0)
    value = condition(tirx.BufferLoad(held, [k]), tirx.BufferLoad(z, [i, k]))
    zero, lanes, vector = tirx.IntImm("int64", 0), tirx.IntImm("int64", width), tirx.ForKind.VECTORIZED
    row = [
        tirx.AllocBuffer(held),
        tirx.For(j, zero, lanes, vector, tirx.BufferStore(held, positive, [j])),
        tirx.For(k, zero, lanes, vector, tirx.BufferStore(y, value, [i, k])),
    ]
    rows = tirx.For(i, zero, tirx.IntImm("int64", ROWS), tirx.ForKind.SERIAL, tirx.SeqStmt(row))
    body = s_tir.SBlockRealize([], tirx.IntImm("bool", 1), s_tir.SBlock([], [], [], "root", rows))
    return tirx.PrimFunc([x, z, y], body).with_attr("s_tir", True)


def test_conditions_of_held_booleans_in_vectors() -> None:
    kernels = {
        f"kernel{number}_{width}": kernel(width, condition).with_attr("global_symbol", f"kernel{number}_{width}")
        for number, (condition, _) in enumerate(CONDITIONS.values())
        for width in (1, 2, 3, 8, 16)
    }
    target = tvm.target.Target({"kind": "llvm"})
    built = tvm.tirx.build(tvm.IRModule(kernels), target.with_host(target), PIPELINE)
    random = np.random.default_rng(0)
    for number, (name, (_, reference)) in enumerate(CONDITIONS.items()):
        for width in (1, 2, 3, 8, 16):
            x = random.standard_normal((ROWS, width)).astype(np.float32)
            z = random.random((ROWS, width)) > 0.5
            y = tvm.runtime.tensor(np.zeros_like(z))
            built[f"kernel{number}_{width}"](tvm.runtime.tensor(x), tvm.runtime.tensor(z), y)
            expected_bytes = reference(x > 0, z).view(np.uint8)
            np.testing.assert_array_equal(y.numpy().view(np.uint8), expected_bytes, err_msg=f"{name}, {width} lanes")


class Masked(nn.Module):
    """Rows of booleans shared by several stages: reductions, selections, softmax, attention and a norm."""

    def forward(self, x: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        every = ((x > 0) | b).all(-1, keepdim=True)
        some = ((x > 0) & ~b).any(-1, keepdim=True)
        s = torch.softmax(torch.where(((x > 0) ^ b) | ~some, x, x - 3), -1)
        n = functional.rms_norm(torch.where(b | some, x, torch.zeros_like(x)), x.shape[-1:])
        less = (n < x) ^ every
        attended = functional.scaled_dot_product_attention(x, x, n)
        return torch.where((x > 0) & b & ~every, x, -x), s, n, less, torch.where(~less & b, n, s), attended


@pytest.mark.parametrize("width", [2, 16])
def test_booleans_of_rows_of_dynamic_number(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    inputs = [
        (torch.randn((rows, width), generator=generator), torch.rand((rows, width), generator=generator) > 0.4)
        for rows in (9, 5)
    ]
    rows = torch.export.Dim("rows")
    module = compiler.compile(
        Masked().eval(), example_inputs=inputs[0], dynamic_shapes=({0: rows}, {0: rows}), threads=1
    )
    for given in inputs:
        for result, reference in zip(module.run(list(given)).values(), Masked()(*given), strict=True):
            if reference.dtype == torch.bool:
                np.testing.assert_array_equal(result, reference.numpy())
            else:
                np.testing.assert_allclose(result, reference.numpy(), rtol=2e-5, atol=2e-5)
