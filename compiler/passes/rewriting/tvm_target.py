"""TVM's current target while its passes run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from compiler.passes.context import PipelineContext


def tvm_target(context: PipelineContext) -> AbstractContextManager[object]:
    """TVM's description of the target, entered while passes run that ask for the current target."""
    return nullcontext() if context.target is None else context.target.tvm_target()
