"""TVM's names that schedules are written with, imported in the right order (without torch)."""

from __future__ import annotations

from typing import TypeAlias

import schedules.ir.load_tvm  # noqa: F401

# isort: split
import tvm
from tvm import relax, s_tir, te, tirx
from tvm.ir import Expr
from tvm_ffi import StructuralKey, structural_equal, structural_hash

from schedules.ir.structural import structural_map, structural_walk

Analyzer: TypeAlias = tvm.sym.Analyzer
Attrs: TypeAlias = tvm.ir.Attrs
BlockBuilder: TypeAlias = tvm.relax.BlockBuilder
Buffer: TypeAlias = tirx.Buffer
Call: TypeAlias = tvm.ir.Call
GlobalVar: TypeAlias = tvm.ir.GlobalVar
IRModule: TypeAlias = tvm.IRModule
IterVar: TypeAlias = tirx.IterVar
PrimFunc: TypeAlias = tirx.PrimFunc
Stmt: TypeAlias = tirx.Stmt
Tensor: TypeAlias = te.Tensor
Type: TypeAlias = tvm.ir.Type
Var: TypeAlias = tvm.ir.Var
Index: TypeAlias = Expr | int
"""An index or a size: an int as long as it is known, else an expression."""
Node: TypeAlias = Expr | Stmt
"""A part of a kernel: an expression or a statement."""
VECTORIZED = tirx.ForKind.VECTORIZED

__all__ = [
    "VECTORIZED",
    "Expr",
    "PrimFunc",
    "Stmt",
    "StructuralKey",
    "relax",
    "s_tir",
    "structural_equal",
    "structural_hash",
    "structural_map",
    "structural_walk",
    "te",
    "tirx",
    "tvm",
]
