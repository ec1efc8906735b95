"""TVM's names that schedules are written with, imported in the right order (without torch)."""

from __future__ import annotations

from typing import Any

import schedules.ir.load_tvm  # noqa: F401

# isort: split
import tvm
from tvm import s_tir, tirx
from tvm_ffi import StructuralKey, structural_equal, structural_hash, structural_map, structural_walk

Expr = Any  # TVM's expressions and statements have no Python base class that type checkers know
Stmt = Any
VECTORIZED = tirx.ForKind.VECTORIZED

__all__ = [
    "VECTORIZED",
    "Expr",
    "Stmt",
    "StructuralKey",
    "s_tir",
    "structural_equal",
    "structural_hash",
    "structural_map",
    "structural_walk",
    "tirx",
    "tvm",
]
