"""The engine's tensor-core operations, registered when they are wanted.

The engine's module of them parses some hundred functions when it is imported, which takes 25 s of processor time. Here
its definitions are executed without those calls; `register` then makes the few that a schedule uses.
"""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from schedules.errors import NotScheduledError
from schedules.tir import s_tir

_PACKAGE = "tvm.s_tir.tensor_intrin"
_MODULE = f"{_PACKAGE}.cuda"
_SIZE = (16, 16, 16)
_NEEDED = {"float16": 70, "int8": 72, "bfloat16": 80}


@cache
def definitions() -> types.ModuleType:
    """The engine's module of operations, without its registrations unless it was imported before.

    It stays the module that `import` finds: dlight imports it, and so does this process from here on.
    """
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    origin = Path(str(s_tir.__file__)).with_name("tensor_intrin") / "cuda.py"
    tree = ast.parse(origin.read_text(encoding="utf-8"))
    tree.body = [each for each in tree.body if not _registers(each)]
    module = types.ModuleType(_MODULE)
    module.__file__ = str(origin)
    sys.modules[_MODULE] = module
    exec(compile(tree, str(origin), "exec"), module.__dict__)
    return module


def _registers(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    function = call.func if isinstance(call, ast.Call) else None
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "register"
        and isinstance(function.value, ast.Name)
        and function.value.id == "TensorIntrin"
    )


@contextmanager
def offered(compute_capability: int) -> Iterator[None]:
    """For a while dlight finds the operations without the import of all of them, and takes bfloat16 too.

    dlight knows float16 and 8-bit integers only: it is told float16 and gets the operations of bfloat16. Element types
    that tensor cores of this version do not multiply are kept from them: bfloat16 needs 8.0, 8-bit integers 7.2.
    """
    rules: Any = sys.modules[s_tir.dlight.gpu.Matmul.__module__]
    module: Any = definitions()
    asked = ""

    def dtypes(block: Any) -> tuple[str, str]:
        nonlocal asked
        asked, total = before[0](block)
        if compute_capability < _NEEDED.get(asked, 0):
            return asked, "none"
        return ("float16" if asked == "bfloat16" else asked), total

    def group(*_: Any, in_dtype: str, out_dtype: str, **__: Any) -> dict[str, str]:
        return register("bfloat16" if asked == "bfloat16" else in_dtype, out_dtype)

    before = (rules.get_in_out_dtypes, module.get_wmma_intrin_group)
    # The package imports the operations of every processor, 10 s of time; its module is all that is wanted.
    absent = _PACKAGE not in sys.modules
    if absent:
        sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
    rules.get_in_out_dtypes, module.get_wmma_intrin_group = dtypes, group
    try:
        yield
    finally:
        rules.get_in_out_dtypes, module.get_wmma_intrin_group = before
        if absent:
            del sys.modules[_PACKAGE]


@cache
def register(operand: str, total: str) -> dict[str, str]:
    """The names of the operations for products of 16 by 16 by 16, the second operand transposed, in shared memory.

    Args:
        operand: "float16", "bfloat16" or "int8".
        total: the element type of sums.

    Raises NotScheduledError for element types that tensor cores do not take.
    """
    if (operand, total) not in {
        ("float16", "float16"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("int8", "int32"),
    }:
        raise NotScheduledError(f"tensor cores do not multiply {operand} to {total}")
    module: Any = definitions()
    scope = "shared.dyn"
    short = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "int8": "s8", "int32": "s32"}
    given, made = short[operand], short[total]
    names = {
        "init": f"wmma_fill_16x16x16_{made}",
        "load_a": f"wmma_load_16x16x16_{given}_a_shared_dyn",
        "load_b": f"wmma_load_16x16x16_{given}_b_trans_shared_dyn",
        "compute": f"wmma_sync_16x16x16_{given}{given}{made}_trans",
        "store": f"wmma_store_16x16x16_{made}_shared_dyn",
    }
    makers = {
        "init": lambda: module.get_wmma_fill_intrin(*_SIZE, total),
        "load_a": lambda: module.get_wmma_load_intrin(*_SIZE, operand, scope, False, False),
        "load_b": lambda: module.get_wmma_load_intrin(*_SIZE, operand, scope, True, True),
        "compute": lambda: module.get_wmma_sync_intrin(*_SIZE, operand, total, True),
        "store": lambda: module.get_wmma_store_intrin(*_SIZE, total, scope),
    }
    for part, name in names.items():
        if s_tir.TensorIntrin.get(name, True) is None:
            s_tir.TensorIntrin.register(name, *makers[part]())
    return names
