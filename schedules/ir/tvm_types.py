"""Names of TVM's classes for annotations: `if TYPE_CHECKING: from schedules.ir.tvm_types import Expr`.

TVM ships no type information, so that type checkers take each of them for Any; readers see what a value is.
"""

from __future__ import annotations

from typing import TypeAlias

from tvm.ir import Attrs, Call, Expr, GlobalVar, IRModule, Range, Type, Var
from tvm.relax import Binding, BindingBlock, BlockBuilder, Function, SeqExpr
from tvm.runtime import Module as RuntimeModule
from tvm.runtime import Tensor as RuntimeTensor
from tvm.sym import Analyzer
from tvm.te import Tensor
from tvm.tirx import Buffer, BufferRegion, IterVar, PrimFunc, Stmt
from tvm_ffi import Function as PackedFunc

Index: TypeAlias = Expr | int
"""An index or a size: an int as long as it is known, else an expression."""

Node: TypeAlias = Expr | Stmt
"""A part of a kernel: an expression or a statement."""

__all__ = [
    "Analyzer",
    "Attrs",
    "Binding",
    "BindingBlock",
    "BlockBuilder",
    "Buffer",
    "BufferRegion",
    "Call",
    "Expr",
    "Function",
    "GlobalVar",
    "IRModule",
    "Index",
    "IterVar",
    "Node",
    "PackedFunc",
    "PrimFunc",
    "Range",
    "RuntimeModule",
    "RuntimeTensor",
    "SeqExpr",
    "Stmt",
    "Tensor",
    "Type",
    "Var",
]
