"""Names of TVM's classes for annotations: `if TYPE_CHECKING: from schedules.ir.tvm_types import Expr`.

TVM ships no type information, so that type checkers take each of them for Any; readers see what a value is.
"""

from __future__ import annotations

from tvm.ir import Call, Expr, GlobalVar, IRModule, Var
from tvm.relax import Binding, BindingBlock, Function, SeqExpr
from tvm.te import Tensor
from tvm.tirx import Buffer, PrimFunc, Stmt

__all__ = [
    "Binding",
    "BindingBlock",
    "Buffer",
    "Call",
    "Expr",
    "Function",
    "GlobalVar",
    "IRModule",
    "PrimFunc",
    "SeqExpr",
    "Stmt",
    "Tensor",
    "Var",
]
