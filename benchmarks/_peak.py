"""Measures the machine's peak: a loop of independent vector multiply-adds in registers."""

from __future__ import annotations

import time

import numpy as np

import schedules.ir.tir  # noqa: F401
import targets
from schedules.codegen.nest import allocate, lanes_of, load, parallel, repeat, sequence, splat, store
from schedules.ir.expression import expression
from schedules.ir.tir import Stmt, tirx, tvm

_CHAINS = 12
_STEPS = 1 << 20


def measure_peak(threads: int, target_name: str = "host") -> float:
    """Return float32 operations per second on `threads` threads with a target's vectors, the best of several runs. Set
    TVM_NUM_THREADS first."""
    target = targets.get(target_name)
    lanes = target.machine.lanes("float32")
    shape = [expression(threads), expression(_CHAINS), expression(lanes)]
    factors = tirx.decl_buffer([expression(2), expression(lanes)], "float32", "factors")
    output = tirx.decl_buffer(shape, "float32", "output")

    def task(number: object) -> Stmt:
        sums, allocation = allocate("sums", (_CHAINS, lanes), "float32", "local")
        every = lanes_of(0, lanes)
        clear = [store(sums, splat(1.0, "float32", lanes), i, every) for i in range(_CHAINS)]
        factor, term = load(factors, 0, every), load(factors, 1, every)
        step = sequence([store(sums, load(sums, i, every) * factor + term, i, every) for i in range(_CHAINS)])
        keep = [store(output, load(sums, i, every), number, i, every) for i in range(_CHAINS)]
        return sequence(allocation, clear, repeat("step", _STEPS, lambda _: step), keep)

    function = tirx.PrimFunc([factors, output], parallel("task", threads, task))
    function = function.with_attrs({"global_symbol": "main", "tirx.noalias": True, "s_tir": True})
    run = tvm.compile(tvm.IRModule({"main": function}), target=target.tvm_target())["main"]
    result = tvm.runtime.tensor(np.zeros((threads, _CHAINS, lanes), "float32"))
    operands = tvm.runtime.tensor(np.stack([np.full(lanes, 0.5), np.full(lanes, 0.25)]).astype("float32"))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        run(operands, result)
        best = min(best, time.perf_counter() - start)
    return 2 * threads * _CHAINS * lanes * _STEPS / best
