"""A functional simulator that executes the engine's commands one by one. A real engine would have its driver here."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi

from matrix_engine.commands import ADD_BIAS, CLEAR, LOAD_A, LOAD_B, MULTIPLY, RELU, STORE, TILE, tiles

FUNCTION = "matrix_engine.run"


def register() -> None:
    """Register the function that compiled modules call."""
    tvm_ffi.register_global_func(FUNCTION, _run, override=True)


def _run(program: Any, x: Any, weight: Any, bias: Any, out: Any) -> None:
    """Run a program on a module's inputs, and write its output."""
    arrays = [np.from_dlpack(tensor) for tensor in (program, x, weight, bias)]
    np.from_dlpack(out)[...] = execute(*arrays)


def execute(program: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the result of a program on x (rows, depth), weight (depth, columns), bias (columns)."""
    rows, columns = x.shape[0], weight.shape[1]
    memory_a, memory_b = _padded(x), _padded(weight)
    memory_bias = _padded(bias[None])[0]
    result = np.zeros((tiles(rows) * TILE, tiles(columns) * TILE), np.float32)
    a = b = total = np.zeros((TILE, TILE), np.float32)
    for what, first, second, _ in program:
        if what == CLEAR:
            total = np.zeros((TILE, TILE), np.float32)
        elif what == LOAD_A:
            a = memory_a[_tile(first), _tile(second)]
        elif what == LOAD_B:
            b = memory_b[_tile(first), _tile(second)]
        elif what == MULTIPLY:
            total = total + a @ b
        elif what == ADD_BIAS:
            total = total + memory_bias[_tile(first)]
        elif what == RELU:
            total = np.maximum(total, 0)
        elif what == STORE:
            result[_tile(first), _tile(second)] = total
        else:
            raise ValueError(f"command {what} is unknown to the engine")
    return result[:rows, :columns]


def _tile(number: int) -> slice:
    return slice(int(number) * TILE, (int(number) + 1) * TILE)


def _padded(matrix: np.ndarray) -> np.ndarray:
    height, width = matrix.shape
    return np.pad(matrix, ((0, -height % TILE), (0, -width % TILE)))
