"""Loops that run on several threads if that pays: one body, launched in chunks or called on the calling thread."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import tirx

import targets
from compiler.codegen.kernel_lowering import PIPELINE
from schedules.codegen.nest import Extent, allocate, load, parallel_grid, sequence, store
from schedules.ir.expression import index
from schedules.machine import Machine

_MIN_ELEMENTS = 200  # elements from which on the kernel below uses threads


def _kernel(machine: Machine) -> Any:
    """y = x + its indices as digits, over three loops of dynamic sizes and one of three, with a scratch buffer."""
    sizes = [tirx.Var(name, "int64") for name in ("n", "h", "w")]
    shape = [sizes[0], sizes[1], index(3), sizes[2]]
    x, y = (tirx.decl_buffer(shape, "float32", name, layout=None) for name in ("x", "y"))
    extents = [Extent("n", sizes[0]), Extent("h", sizes[1], "int64"), Extent("c", 3), Extent("w", sizes[2])]

    def body(at: Sequence[Any]) -> Any:
        held, allocation = allocate("held", (4,), "float32", "local")
        digits = at[0] * 1000 + at[1] * 100 + at[2] * 10 + at[3]
        kept = store(held, load(x, *at) + tirx.Cast("float32", digits), 0)
        return sequence(allocation, kept, store(y, load(held, 0), *at))

    total = sizes[0] * sizes[1] * sizes[2] * 3
    loops = parallel_grid(extents, body, machine, parallel=total >= index(_MIN_ELEMENTS))
    return tirx.PrimFunc([x, y], loops).with_attr("global_symbol", "kernel").with_attr("tirx.noalias", True)


def _built() -> Any:
    target = targets.get("host", cores=2)
    with target.tvm_target():
        module = tvm.IRModule({"kernel": _kernel(target.machine)})
        return tvm.tirx.build(module, target.tvm_target(), PIPELINE)


def test_every_point_is_visited_once_with_and_without_threads() -> None:
    library = _built()
    for n, h, w in itertools.product((0, 1, 2, 7), (0, 1, 5, 13), (0, 1, 3)):
        x = np.random.default_rng(0).standard_normal((n, h, 3, w)).astype(np.float32)
        y = tvm.runtime.tensor(np.full_like(x, np.nan))
        library["kernel"](tvm.runtime.tensor(x), y)
        at = np.indices(x.shape)
        expected = x + (at[0] * 1000 + at[1] * 100 + at[2] * 10 + at[3]).astype(np.float32)
        np.testing.assert_array_equal(y.numpy(), expected, err_msg=f"{(n, h, w)}")


def test_the_body_exists_once() -> None:
    lines = _built().inspect_source("ll").splitlines()
    places = [line for line in lines if "@__tvm_ffi_kernel_chunk0_(" in line]
    assert sum(line.startswith("define ") for line in places) == 1
    assert sum(" call " in line for line in places) == 2  # of the threads, and of the caller alone
