"""Shared code of the passes that pack constant operands of products."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.ir import IRModule


def pack_all(packer: Any, mod: IRModule) -> IRModule:
    """`mod` with every function but kernels rewritten by `packer`, a mutator that counts in `count` what it
    packs; `mod` itself where that is nothing."""
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function) or (function.attrs and "Primitive" in function.attrs):
            continue
        before = packer.count
        updated = packer.visit_expr(function)
        if packer.count > before:
            packer.builder_.update_func(variable, updated)
    return packer.builder_.get() if packer.count else mod
