"""Kernels of dynamic sizes that differ only in constants are compiled once, with the constants as arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import tirx

import targets
from compiler.codegen.build import alias_object, build_objects
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.codegen.shared_kernels import SharedCall, share_kernels
from schedules.codegen.nest import allocate, load, parallel, repeat, sequence, store
from schedules.ir.expression import index
from schedules.ir.tir import structural_walk


def _kernel(name: str, channels: int, *, unused: bool = False, scratch: int = 4, task: bool = True) -> Any:
    """y[n, c, i] = x[n, c, i] * 2 + c of `channels` channels, tasks of a channel (or an element) each, for any length.

    It may have an unused integer argument, and has a scratch buffer of another size.
    """
    batch, length = tirx.Var("batch", "int64"), tirx.Var(f"length_of_{name}", "int64")
    x = tirx.decl_buffer([batch, index(channels), length], "float32", f"{name}_x", layout=None)
    y = tirx.decl_buffer([batch, index(channels), length], "float32", f"{name}_y", layout=None)
    held, allocation = allocate("held", (scratch,), "float32", "local")

    def element(number: Any, i: Any) -> Any:
        at = number // channels, number % channels, i
        kept = store(held, load(x, *at) * tirx.const(2.0, "float32"), 0)
        return sequence(kept, store(y, load(held, 0) + tirx.Cast("float32", at[1]), *at))

    if task:
        loops = parallel("channel", batch * channels, lambda number: repeat("i", length, lambda i: element(number, i)))
    else:
        loops = parallel("element", batch * channels * length, lambda at: element(at // length, at % length))
    parameters = [x, *([tirx.Var("unused", "int64")] if unused else []), y]
    function = tirx.PrimFunc(parameters, sequence(allocation, loops)).with_attr("global_symbol", name)
    return tvm.ir.GlobalVar(name), function.with_attr("tirx.noalias", True)


def _names(kernels: list[Any]) -> list[str]:
    return [variable.name_hint for variable, _ in kernels]


def test_layers_of_different_channels_share_their_code(tmp_path: Path) -> None:
    kernels = [_kernel("a", 6), _kernel("b", 24), _kernel("c", 24, unused=True), _kernel("d", 1)]
    built, calls = share_kernels(kernels)
    assert _names(built) == ["a_shared", "d"]
    assert calls["a"] == SharedCall("a_shared", (0, 1), (6,))
    assert calls["c"] == SharedCall("a_shared", (0, 2), (24,))
    target = targets.get("host")
    objects = build_objects(built, None, target.tvm_target(), tmp_path)
    aliases = {"e": "b", "f": "d"}
    objects.append(alias_object(aliases, calls, target.tvm_target(), PIPELINE, tmp_path / "aliases.o"))
    target.linker().link(tmp_path / "library.so", objects)
    library = tvm.runtime.load_module(str(tmp_path / "library.so"))
    for name, channels in (("a", 6), ("b", 24), ("c", 24), ("d", 1), ("e", 24), ("f", 1)):
        x = np.random.default_rng(channels).standard_normal((3, channels, 5)).astype(np.float32)
        y = tvm.runtime.tensor(np.zeros_like(x))
        library[name](tvm.runtime.tensor(x), *([7] if name == "c" else []), y)
        expected = x * np.float32(2) + np.arange(channels, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(y.numpy(), expected)


def test_what_constants_make_fast_stays_constant() -> None:
    """Sizes of scratch buffers in registers, and divisors if a task is an element."""
    built, calls = share_kernels([_kernel("a", 6, scratch=4), _kernel("b", 24, scratch=8)])
    assert (_names(built), calls) == (["a", "b"], {})
    built, calls = share_kernels([_kernel("a", 6, task=False), _kernel("b", 24, task=False)])
    assert (_names(built), calls) == (["a", "b"], {})


def test_a_task_divides_by_an_argument_once() -> None:
    """It divides before its loops, since a division by a variable is slow."""
    ((_, shared),), _ = share_kernels([_kernel("a", 6), _kernel("b", 24)])
    inside: list[Any] = []

    def loop(node: Any) -> None:
        if node.kind == tirx.ForKind.SERIAL:
            structural_walk(node.body, ((tirx.FloorDiv, tirx.FloorMod), inside.append))

    structural_walk(shared.body, (tirx.For, loop))
    assert inside == []


def test_kernels_of_known_sizes_keep_their_code() -> None:
    static = [_copy("a", 6), _copy("b", 24)]
    assert share_kernels(static) == (static, {})


def _copy(name: str, channels: int) -> Any:
    x, y = (tirx.decl_buffer([index(channels), index(5)], "float32", each, layout=None) for each in ("x", "y"))

    def row(c: Any) -> Any:
        return repeat("i", 5, lambda i: store(y, load(x, c, i), c, i))

    function = tirx.PrimFunc([x, y], repeat("c", channels, row)).with_attr("global_symbol", name)
    return tvm.ir.GlobalVar(name), function


def test_a_size_within_a_formula_of_a_shape_stays_an_argument() -> None:
    """y[c, i] = 2 x[c, i] of an x of `2 * half` columns: the body reads the columns of y, and the shape of x `half`."""

    def kernel(name: str, channels: int) -> Any:
        half, columns = tirx.Var("half", "int64"), tirx.Var("columns", "int64")
        x = tirx.decl_buffer([index(channels), half * 2], "float32", f"{name}_x", layout=None)
        y = tirx.decl_buffer([index(channels), columns], "float32", f"{name}_y", layout=None)

        def row(c: Any) -> Any:
            return repeat("i", columns, lambda i: store(y, load(x, c, i) * tirx.const(2.0, "float32"), c, i))

        function = tirx.PrimFunc([x, half, y], parallel("channel", index(channels), row))
        return tvm.ir.GlobalVar(name), function.with_attr("global_symbol", name)

    built, calls = share_kernels([kernel("a", 6), kernel("b", 24)])
    assert _names(built) == ["a_shared"]
    assert calls["b"] == SharedCall("a_shared", (0, 1, 2), (24,))


def test_a_table_of_known_rows_is_no_table_of_dynamic_rows() -> None:
    """Some layers gather rows from tables, others from results with a dynamic number of rows (graph nodes)."""
    kernels = [_looked_up("a", 7, 64), _looked_up("b", 9, 128), _looked_up("c", None, 64), _looked_up("d", None, 128)]
    built, calls = share_kernels(kernels)
    assert _names(built) == ["a_shared", "c_shared"]
    assert [calls[name].constants for name in "abcd"] == [(7, 64), (9, 128), (64,), (128,)]


def _looked_up(name: str, rows: int | None, channels: int) -> Any:
    count = tirx.Var("count", "int64")
    first = tirx.Var("rows", "int64") if rows is None else index(rows)
    table, y = (
        tirx.decl_buffer([each, index(channels)], "float32", f"{name}_{label}", layout=None)
        for each, label in ((first, "table"), (count, "y"))
    )

    def row(i: Any) -> Any:
        return repeat("c", channels, lambda c: store(y, load(table, 0, c), i, c))

    function = tirx.PrimFunc([table, y], parallel("row", count, row)).with_attr("global_symbol", name)
    return tvm.ir.GlobalVar(name), function
