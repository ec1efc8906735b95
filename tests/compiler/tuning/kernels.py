"""Small tasks for the tests of tuning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tvm import relax

import targets
from compiler.tuning.tasks import Task, tasks_of
from schedules.ir.tir import tvm


@cache
def target() -> targets.Target:
    """A target of one core of this machine, as tests run in parallel."""
    return targets.get("host", cores=1)


def product_module(rows: int = 24, depth: int = 48, columns: int = 64) -> Any:
    """relu(x @ w) of a fixed weight, lowered and fused."""
    import numpy as np

    weight = np.random.default_rng(0).standard_normal((depth, columns)).astype("float32")

    def build(builder: Any, x: Any) -> Any:
        return builder.emit(relax.op.nn.relu(builder.emit(relax.op.matmul(x, relax.const(weight)))))

    return lowered(build, [(rows, depth)])


def lowered(build: Any, shapes: Sequence[Sequence[int]]) -> Any:
    """The module of `build(builder, *inputs)`, lowered and fused like in the pipeline."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{i}", relax.TensorType(list(shape), "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(build(builder, *inputs))
        builder.emit_func_output(output)
    steps = relax.transform
    passes = [steps.LegalizeOps(), steps.AnnotateTIROpPattern(), steps.FuseOps(), steps.FuseTIR()]
    with target().tvm_target():
        return tvm.transform.Sequential(passes)(builder.get())


def product_task(**sizes: int) -> Task:
    """The task of `product_module`."""
    (task,) = tasks_of(product_module(**sizes), target()).tasks
    return task
