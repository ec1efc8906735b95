"""Integers in buffers from which sizes are computed, like EnCodec's strides: `torch.export` treats them as data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError

if TYPE_CHECKING:
    import torch


@contextmanager
def integers_as_constants(model: torch.nn.Module) -> Iterator[bool]:
    """While it lasts, scalar integers that are not part of the model's state are constants of the code that runs.

    Yields whether there are any. A buffer that is saved with the model may count something, and stays as it is.
    """
    handles: list[Any] = []
    try:
        for module in model.modules():
            values = _integers(module)
            if values:
                enter, leave = _exchange(values)
                handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield bool(handles)
    finally:
        for handle in handles:
            handle.remove()


def _integers(module: torch.nn.Module) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in module._buffers.items()
        if name in module._non_persistent_buffers_set
        and value is not None
        and value.ndim == 0
        and not value.is_floating_point()
        and not value.is_complex()
    }


def _exchange(values: dict[str, int]) -> tuple[Any, Any]:
    """Hooks of a module that put constants in place of its buffers, and the buffers back."""
    import torch

    kept: dict[str, Any] = {}

    def enter(module: torch.nn.Module, _: object) -> None:
        for name, value in values.items():
            kept[name] = module._buffers[name]
            module._buffers[name] = torch.tensor(value, dtype=kept[name].dtype)

    def leave(module: torch.nn.Module, _: object, __: object) -> None:
        module._buffers.update(kept)

    return enter, leave


def refuse_writes_to_constants(program: torch.export.ExportedProgram) -> None:
    """Raise UnsupportedModelError where the model writes to what became a constant."""
    import torch

    detach = torch.ops.aten.detach_.default  # as each constant begins
    constants = set(program.graph_signature.inputs_to_lifted_tensor_constants)
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable or node.target is detach:
            continue
        source = node.args[0]
        while source.op == "call_function" and source.args and isinstance(source.args[0], torch.fx.Node):
            source = source.args[0]  # the base of a view
        if source.name in constants:
            raise UnsupportedModelError(
                [Refusal("mutation", source.name, "the model writes to an integer in a buffer while running")],
                "return the new value as an output instead",
            )
