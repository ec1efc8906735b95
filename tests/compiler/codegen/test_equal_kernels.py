"""Kernels that differ only in names and computed sizes are compiled once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import te, tirx

import targets
from compiler.codegen.build import alias_object, build_objects, distinct_kernels
from compiler.codegen.kernel_lowering import PIPELINE
from schedules.ir.size_proofs import name_sizes


def _kernel(name: str, symbol: str, divisor: int, factor: float = 2.0) -> Any:
    """y = x * factor of rows of (size - 1) // divisor + 1."""
    size = tirx.Var(symbol, "int64")
    columns = (size - 1) // divisor + 1
    x = te.placeholder((4, columns), name=f"{symbol}_data")
    y = te.compute((4, columns), lambda i, j: x[i, j] * factor, name=f"{symbol}_result")
    function = te.create_prim_func([x, y, size]).with_attr("global_symbol", name)
    return tvm.ir.GlobalVar(name), function


def test_layers_of_different_sizes_share_their_code(tmp_path: Path) -> None:
    kernels = [_kernel("a", "h", 8), _kernel("b", "w", 16), _kernel("c", "h", 8, 3.0), _kernel("d", "h", 8)]
    distinct, aliases = distinct_kernels(kernels)
    assert [variable.name_hint for variable, _ in distinct] == ["a", "c"]
    assert aliases == {"b": "a", "d": "a"}
    target = targets.get("host")
    objects = build_objects(distinct, None, target.tvm_target(), tmp_path)
    objects.append(alias_object(aliases, {}, target.tvm_target(), PIPELINE, tmp_path / "aliases.o"))
    target.linker().link(tmp_path / "library.so", objects)
    library = tvm.runtime.load_module(str(tmp_path / "library.so"))
    for name, size, divisor, factor in (("a", 20, 8, 2), ("b", 65, 16, 2), ("c", 7, 8, 3), ("d", 100, 8, 2)):
        shape = (4, (size - 1) // divisor + 1)
        x = np.random.default_rng(size).standard_normal(shape).astype(np.float32)
        y = tvm.runtime.tensor(np.zeros(shape, np.float32))
        library[name](tvm.runtime.tensor(x), y, size)
        np.testing.assert_array_equal(y.numpy(), x * np.float32(factor))


def test_sizes_that_hold_others_and_ties_between_tensors_are_kept() -> None:
    """(h + 2) and (h + 2) // 2 become two sizes; equal sizes of two tensors stay one."""
    size = tirx.Var("h", "int64")
    x = te.placeholder((size + 2, (size + 2) // 2), name="x")
    y = te.compute((size + 2, (size + 2) // 2), lambda i, j: x[i, j] + 1.0, name="y")
    named = name_sizes(te.create_prim_func([x, y, size]))
    first, second = (list(each.ty.shape) for each in named.params[:2])
    assert all(isinstance(each, tirx.Var) for each in first)
    assert not first[0].same_as(first[1])
    assert all(a.same_as(b) for a, b in zip(first, second, strict=True))
