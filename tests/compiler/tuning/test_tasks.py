"""Tasks of a lowered module: distinct, counted, and with marked weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from compiler.tuning.tasks import tasks_of
from tests.compiler.tuning.kernels import lowered, product_task, target


def test_a_product_is_one_task_with_its_weight_marked() -> None:
    task = product_task(rows=24, depth=48, columns=64)
    assert task.rule.name == "matmul"
    assert task.count == 1
    assert task.tunable
    assert task.default in task.space
    shapes = {argument.shape: (argument.is_constant, argument.is_output) for argument in task.kernel.arguments}
    assert shapes == {(24, 48): (False, False), (48, 64): (True, False), (24, 64): (False, True)}
    assert task.kernel.constant_bytes == 48 * 64 * 4


def test_equal_kernels_are_one_task_that_counts() -> None:
    weights = [np.full((32, 32), value, "float32") for value in (1.0, 2.0, 3.0)]

    def build(builder: Any, x: Any) -> Any:
        for weight in weights:
            x = builder.emit(relax.op.nn.relu(builder.emit(relax.op.matmul(x, relax.const(weight)))))
        return x

    (task,) = tasks_of(lowered(build, [(8, 32)]), target()).tasks
    assert task.count == 3


def test_kernels_of_unknown_size_are_named() -> None:
    from schedules.ir.tir import tvm

    rows = tvm.tirx.Var("rows", "int64")
    weight = np.ones((32, 32), "float32")
    shapes: Any = [(rows, 32)]
    module = lowered(lambda builder, x: builder.emit(relax.op.matmul(x, relax.const(weight))), shapes)
    extracted = tasks_of(module, target())
    assert extracted.tasks == []
    assert list(extracted.skipped.values()) == ["its sizes are known only at run time"]
