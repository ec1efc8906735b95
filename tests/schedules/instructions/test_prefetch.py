"""Asking for weights ahead must not cost the sums their registers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from schedules.codegen.nest import allocate_tile, lanes_of, load, parallel, prefetch, repeat, sequence, store
from schedules.instructions.finish import finish
from schedules.ir.expression import expression
from schedules.ir.tir import tirx, tvm
from tests.schedules.harness import AVX512, target_of

ROWS, LANES = 8, 16


def kernel() -> tvm.IRModule:
    """Each task sums 64 rows of weights, times a row of data, and asks for each ahead."""
    shape = [expression(64), expression(LANES)]
    data, weights, result = (tirx.decl_buffer(shape, "float32", name) for name in ("data", "weights", "result"))
    every = lanes_of(0, LANES)

    def task(number: object) -> object:
        sums, allocations = allocate_tile("sums", (ROWS, LANES), "float32")

        def step(k: object) -> object:
            weight = load(weights, k, every)
            added = [store(sums, load(sums, i, every) + load(data, i, every) * weight, i, every) for i in range(ROWS)]
            return sequence(prefetch(weights, k + 8, 0), added)  # type: ignore[operator]

        clear = [store(sums, load(data, 0, every), i, every) for i in range(ROWS)]
        keep = [store(result, load(sums, i, every), number * ROWS + i, every) for i in range(ROWS)]  # type: ignore[operator]
        return sequence(allocations, clear, repeat("k", 64, step), keep)

    function = tirx.PrimFunc([data, weights, result], parallel("task", 64 // ROWS, task))
    attributes = {"global_symbol": "main", "tirx.noalias": True, "s_tir": True}
    return tvm.IRModule({"main": finish(function.with_attrs(attributes), target_of(AVX512).machine)})


def test_the_loop_stores_nothing() -> None:
    text = tvm.compile(kernel(), target=target_of(AVX512).tvm_target()).mod.inspect_source("asm")
    lines = str(text).splitlines()
    asked = [number for number, line in enumerate(lines) if re.search(r"\bprefetcht", line)]
    assert asked
    for number in asked:
        begin = max(i for i in range(number) if lines[i].startswith(".L"))
        end = next(i for i in range(number, len(lines)) if re.match(r"\s+j[a-z]+\s", lines[i]))
        stores = [line for line in lines[begin:end] if re.search(r"vmov[au]ps\s+%zmm\d+,\s*[-\d]*\(", line)]
        assert stores == []


@pytest.mark.skipif(not target_of(AVX512).fits_this_machine(), reason="needs AVX-512")
def test_numbers_stay_right() -> None:
    generator = np.random.default_rng(0)
    data, weights = (generator.standard_normal((64, LANES)).astype("float32") for _ in range(2))
    result = tvm.runtime.tensor(np.zeros((64, LANES), "float32"))
    run = tvm.compile(kernel(), target=target_of(AVX512).tvm_target())["main"]
    run(tvm.runtime.tensor(data), tvm.runtime.tensor(weights), result)
    expected = np.tile(data[0] + data[:ROWS] * weights.sum(0), (64 // ROWS, 1))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)
