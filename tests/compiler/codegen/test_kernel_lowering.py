"""Argument checks that remain in the code of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import tvm
from tvm import tirx
from tvm.script import tirx as T

import compiler
import compiler.codegen.kernel_lowering as kernel_lowering
from schedules.ir.tir import structural_walk


@T.prim_func(s_tir=True)
def fixed(a: T.Buffer((T.int64(4), T.int64(8)), "float32"), b: T.Buffer((T.int64(4), T.int64(8)), "float32")) -> None:  # type: ignore[valid-type]
    for i, j in T.grid(T.int64(4), T.int64(8)):
        with T.sblock("copy"):
            v, w = T.axis.remap("SS", [i, j])
            b[v, w] = a[v, w]


@T.prim_func(s_tir=True)
def symbolic(x: T.handle, y: T.handle) -> None:
    n = T.int64()
    a = T.match_buffer(x, (n, T.int64(8)))
    b = T.match_buffer(y, (n, T.int64(8)))
    for i, j in T.grid(n, T.int64(8)):
        with T.sblock("copy"):
            v, w = T.axis.remap("SS", [i, j])
            b[v, w] = a[v, w]


def checks(function: Any) -> list[str]:
    """Checks of the arguments after lowering."""
    target = tvm.target.Target({"kind": "llvm"})
    mod = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    lower, _, _ = tirx.get_tir_pipeline(kernel_lowering.PIPELINE)
    with target:
        lowered = lower(tirx.transform.BindTarget(target.with_host(target))(mod))
    found: list[str] = []

    def note(check: Any) -> None:
        found.append("".join(str(part.value) for part in check.message_parts[:3]))

    for _, each in lowered.functions_items():
        structural_walk(each.body, (tirx.AssertStmt, note))
    return found


def test_a_kernel_of_known_sizes_checks_only_where_its_data_begins() -> None:
    found = checks(fixed)
    assert found
    assert all("byte_offset" in each for each in found)


def test_symbolic_sizes_are_compared() -> None:
    found = checks(symbolic)
    assert any(".shape[0]" in each for each in found)
    assert not any(".dtype" in each or ".strides" in each for each in found)


def test_tiles_of_registers_lie_on_the_stack() -> None:
    tile = tirx.decl_buffer([64, 16], "float32", "tile", scope="local")
    scratch = tirx.decl_buffer([64, 16], "float32", "scratch")
    body = tirx.SeqStmt([tirx.AllocBuffer(tile), tirx.AllocBuffer(scratch)])
    held, kept = kernel_lowering._on_stack(body).seq
    assert int(held.annotations["disable_lower_builtin"]) == 1
    assert not kept.annotations


@T.prim_func(s_tir=True)
def divided(x: T.handle, n: T.int64, p: T.int64, q: T.int64, y: T.handle) -> None:
    a = T.match_buffer(x, (n * (p + q) * T.int64(32) // (p * T.int64(8) + q * T.int64(8)) * (p + q) * T.int64(8),))
    b = T.match_buffer(y, (n * (p + q) * T.int64(32) // (p * T.int64(8) + q * T.int64(8)), p + q, T.int64(8)))
    with T.sblock("root"):
        T.reads()
        T.writes()
        for i, j, k in T.grid(n * (p + q) * T.int64(32) // (p * T.int64(8) + q * T.int64(8)), p + q, T.int64(8)):
            b[i, j, k] = a[
                (i * (p + q) * T.int64(8) + j * T.int64(8) + k)
                % (n * (p + q) * T.int64(32) // (p * T.int64(8) + q * T.int64(8)) * (p + q) * T.int64(8))
            ]


def test_sizes_divided_by_sizes_in_extents_of_loops() -> None:
    target = tvm.target.Target({"kind": "llvm"})
    with target:
        library = tirx.build(tvm.IRModule({"main": divided}), target=target, pipeline=kernel_lowering.PIPELINE)
    values = np.arange(192, dtype=np.float32)
    result = tvm.runtime.tensor(np.zeros((8, 3, 8), np.float32))
    library["divided"](tvm.runtime.tensor(values), 2, 1, 2, result)
    np.testing.assert_array_equal(result.numpy(), values.reshape(8, 3, 8))


def test_marks_that_code_generation_warns_of_are_left_out() -> None:
    body = tirx.AttrStmt(
        tirx.IntImm("int32", 0), "pragma_scope", tvm.ir.StringImm("seq"), tirx.Evaluate(tirx.IntImm("int32", 1))
    )
    tvm.ir.assert_structural_equal(kernel_lowering._without_scopes(body), body.body)


def test_no_size_of_zero_is_a_divisor_outside_of_the_loops_over_it() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> agraph (float[2,W] x, int64[2] s) => (float[P,Q] y) {
        y = Resize <mode="linear", antialias=1> (x, , , s)
    }"""
    module = compiler.compile(onnx.parser.parse_model(text), threads=1)
    for rows, columns in [(2, 3), (2, 0), (0, 5), (0, 0)]:
        feeds = {"x": np.ones((2, 8), np.float32), "s": np.array([rows, columns])}
        np.testing.assert_allclose(module.run(feeds)["y"], np.ones((rows, columns)), rtol=1e-6)
