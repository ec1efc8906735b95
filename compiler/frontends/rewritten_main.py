"""A module whose main function is written anew, by rewritings of imported models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import IRModule

from compiler.errors import InternalError

if TYPE_CHECKING:
    from schedules.ir.tvm_types import BlockBuilder, Function


def with_rewritten_main(mod: IRModule, function: Callable[[BlockBuilder], Function], what: str) -> IRModule:
    """The module with another main function, as dataflow and without dead code.

    Args:
        function: makes the main function; kernels that it emits join the module.
        what: the module in a sentence, for the error: "the module with a capacity".

    Raises InternalError where the module is not well formed.
    """
    builder = relax.BlockBuilder(
        IRModule({var: each for var, each in mod.functions_items() if var.name_hint != "main"})
    )
    builder.add_func(function(builder), "main")
    made = IRModule(dict(builder.finalize().functions_items()), attrs=mod.attrs, global_infos=mod.global_infos)
    made = relax.transform.DeadCodeElimination(["main"])(relax.transform.ConvertToDataflow(1)(made))
    try:
        relax.analysis.well_formed(made)
    except Exception as error:  # whatever TVM raises here is a defect of the rewriting
        raise InternalError(f"{what} is not well formed: {error}") from error
    return made
