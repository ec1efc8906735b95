"""The engine's commands, and the code generator that writes them.

The engine has three tiles of 8 x 8 float32 in its scratchpad: A, B and a sum. A program is an int32 array of commands
of four words: an opcode, and up to three tile numbers. Tiles at the edges are padded with zeros.
"""

from __future__ import annotations

import numpy as np

TILE = 8
CLEAR, LOAD_A, LOAD_B, MULTIPLY, ADD_BIAS, RELU, STORE = range(7)
LONGEST_PROGRAM = 65536  # commands that fit in the engine's queue


def length(rows: int, depth: int, columns: int) -> int:
    """Return the largest number of commands that a matmul needs."""
    return tiles(rows) * tiles(columns) * (3 * tiles(depth) + 4)


def tiles(size: int) -> int:
    """Return the number of tiles that cover a size."""
    return -(-size // TILE)


def product(rows: int, depth: int, columns: int, *, bias: bool, relu: bool) -> np.ndarray:
    """Generate the program of `relu(x @ weight + bias)`, x (rows, depth), weight (depth, columns).

    Returns:
        int32 (commands, 4).
    """
    program: list[tuple[int, int, int, int]] = []
    for row in range(tiles(rows)):
        for column in range(tiles(columns)):
            program.append((CLEAR, 0, 0, 0))
            for step in range(tiles(depth)):
                program.append((LOAD_A, row, step, 0))
                program.append((LOAD_B, step, column, 0))
                program.append((MULTIPLY, 0, 0, 0))
            if bias:
                program.append((ADD_BIAS, column, 0, 0))
            if relu:
                program.append((RELU, 0, 0, 0))
            program.append((STORE, row, column, 0))
    return np.array(program, np.int32)
