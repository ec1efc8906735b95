"""A kernel whose outer loop is parallel, which TVM's default build never makes on a CPU."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)

import tvm  # isort: skip
from tvm import relax, te  # isort: skip


@cache
def parallel_library(shape: tuple[int, int]) -> bytes:
    """y = x + 1, rows in parallel."""
    x = te.placeholder(shape, "float32", "x")
    y = te.compute(shape, lambda i, j: x[i, j] + tvm.tirx.const(1, "float32"), "y")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([x, y]))
    schedule.parallel(schedule.get_loops(schedule.get_sblock("y"))[0])
    builder = relax.BlockBuilder()
    kernel = builder.add_func(schedule.mod["main"].without_attr("global_symbol"), "kernel")
    kind = relax.TensorType(shape, "float32")
    variable = relax.Var("x", kind)
    with builder.function("main", [variable]):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple([builder.emit(relax.call_tir(kernel, (variable,), kind))]))
        builder.emit_func_output(result)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.so"
        relax.build(builder.get(), tvm.target.Target({"kind": "llvm"})).export_library(str(path))
        return path.read_bytes()
