"""TVM's names that schedules are written with, imported in the right order (without torch)."""

from __future__ import annotations

from typing import TypeAlias

import schedules.ir.load_tvm  # noqa: F401

# isort: split
import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm_ffi import StructuralKey, structural_equal, structural_hash, structural_map, structural_walk

PrimFunc: TypeAlias = tirx.PrimFunc
Stmt: TypeAlias = tirx.Stmt
VECTORIZED = tirx.ForKind.VECTORIZED

__all__ = [
    "VECTORIZED",
    "Expr",
    "PrimFunc",
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
