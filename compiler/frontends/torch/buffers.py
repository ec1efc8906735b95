"""Model buffers that the exporter misreads: integers that determine sizes, like EnCodec's strides, which `torch.export`
treats as data; and one tensor under several names, of which the first is used for all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.constants import MAX_ELEMENTS, writes

if TYPE_CHECKING:
    import torch


@contextmanager
def integers_as_constants(model: torch.nn.Module) -> Iterator[bool]:
    """Context in which small integer buffers outside the model's state are constants of the executed code.

    Yields True if there are any. A buffer saved with the model may be a counter and stays unchanged.
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


def _integers(module: torch.nn.Module) -> dict[str, Any]:
    return {
        name: value.tolist()
        for name, value in module._buffers.items()
        if name in module._non_persistent_buffers_set
        and value is not None
        and 0 < value.numel() <= MAX_ELEMENTS
        and not value.is_floating_point()
        and not value.is_complex()
    }


def _exchange(values: dict[str, Any]) -> tuple[Any, Any]:
    """Return module hooks that replace buffers by constants, and restore the buffers."""
    import torch

    originals: dict[str, Any] = {}

    def enter(module: torch.nn.Module, _: object) -> None:
        for name, value in values.items():
            originals[name] = module._buffers[name]
            module._buffers[name] = torch.tensor(value, dtype=originals[name].dtype)

    def leave(module: torch.nn.Module, _: object, __: object) -> None:
        module._buffers.update(originals)

    return enter, leave


def refuse_writes_to_constants(program: torch.export.ExportedProgram) -> None:
    """Raise UnsupportedModelError if the model writes to a buffer that became a constant."""
    import torch

    detach = torch.ops.aten.detach_.default  # first operation on each constant
    constants = set(program.graph_signature.inputs_to_lifted_tensor_constants)
    for node in program.graph.nodes:
        if node.op != "call_function" or not writes(node.target) or node.target is detach:
            continue
        source = _base(node.args[0])
        if source.name in constants:
            raise UnsupportedModelError(
                [Refusal("mutation", source.name, "the model writes to an integer in a buffer while running")],
                "return the new value as an output instead",
            )


def _base(node: torch.fx.Node) -> torch.fx.Node:
    """The tensor that a node is a view of; a copy has memory of its own."""
    import torch

    while node.op == "call_function" and node.target is not torch.ops.aten.clone.default:
        if not node.args or not isinstance(node.args[0], torch.fx.Node):
            break
        node = node.args[0]
    return node


def with_shared_buffers(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with one input per distinct buffer; a copy if two of its buffers are the same tensor.

    Raises UnsupportedModelError if a buffer's memory is part of another's: writes to one would have to be visible in
    the other.
    """
    from torch.export.graph_signature import InputKind

    first: dict[Any, Any] = {}  # memory description of a tensor -> input specification of the buffer
    same: dict[str, str] = {}  # placeholder -> placeholder that replaces it
    for spec in program.graph_signature.input_specs:
        tensor = _buffer(program, spec.target) if spec.kind == InputKind.BUFFER else None
        if tensor is None or not tensor.numel():
            continue
        for view, base in first.items():
            if view[0] == tensor.untyped_storage().data_ptr() and view != _position(tensor):
                _refuse(spec.target, base.target)
        known = first.setdefault(_position(tensor), spec)
        if known is not spec:
            same[spec.arg.name] = known.arg.name
    return _merged(program, same) if same else program


def _buffer(program: torch.export.ExportedProgram, name: str | None) -> Any:
    """Return a buffer with memory to compare; None for other tensors, such as sparse ones."""
    import torch

    tensor = program.state_dict.get(name, program.constants.get(name)) if name is not None else None
    return tensor if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided else None


def _position(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for tensors that read the same memory in the same way."""
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _refuse(name: str, other: str) -> None:
    raise UnsupportedModelError(
        [Refusal("mutation", name, f"its memory is part of the buffer {other!r}, and the model writes to buffers")],
        "register one buffer, and create its views in forward()",
    )


def _merged(program: torch.export.ExportedProgram, same: dict[str, str]) -> torch.export.ExportedProgram:
    from torch.export import ExportedProgram
    from torch.export.graph_signature import ExportGraphSignature

    root = copy.deepcopy(program.graph_module)
    for node, original in zip(root.graph.nodes, program.graph.nodes, strict=True):
        node.name = original.name  # copies rename names that shadow Python's, and the signature refers to nodes by name
    nodes = {node.name: node for node in root.graph.nodes}
    for name, other in same.items():
        nodes[name].replace_all_uses_with(nodes[other])
        root.graph.erase_node(nodes[name])
    root.recompile()
    signature = program.graph_signature
    specs = [spec for spec in signature.input_specs if getattr(spec.arg, "name", None) not in same]
    dropped = {spec.target for spec in signature.input_specs if getattr(spec.arg, "name", None) in same}
    return ExportedProgram(
        root=root,
        graph=root.graph,
        graph_signature=ExportGraphSignature(specs, signature.output_specs),
        state_dict={name: value for name, value in program.state_dict.items() if name not in dropped},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: value for name, value in program.constants.items() if name not in dropped},
        verifiers=[program.verifier],
    )
