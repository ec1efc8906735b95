"""Evaluates the operators of an exported program that depend on parameters and constants alone.

Used where the conversion to ONNX failed: an operator without one may be applied to constants only (`Normal.icdf` of a
constant in Gemma 3n). Weights that are merely rearranged are folded too, which costs memory, so nothing is folded
before a conversion has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MOST_BYTES = 1 << 26
"""Size limit of a folded value: a larger one comes from an expansion rather than from a computation of constants."""


def with_folded_constants(folded: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Evaluate the constant operators of a program in place."""
    known = _constant_inputs(folded)
    graph = folded.graph
    computed: set[Any] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _is_pure(node) and all(each in known for each in node.all_input_nodes):
            value = _evaluated(node, known)
            if value is not None:
                known[node] = value
                computed.add(node)
    frontier = [node for node in graph.nodes if node in computed and any(user not in computed for user in node.users)]
    for node in frontier:
        _replace(folded, node, known[node])
    graph.eliminate_dead_code()
    folded.graph_module.recompile()
    return folded


def _constant_inputs(program: torch.export.ExportedProgram) -> dict[Any, Any]:
    """The values of the inputs that are parameters, buffers that nothing writes, or constants."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_lifted_tensor_constants}
    written = set(signature.buffers_to_mutate.values())
    names |= {name: buffer for name, buffer in signature.inputs_to_buffers.items() if buffer not in written}
    values = {**program.constants, **program.state_dict}
    return {
        node: values[names[node.name]].detach()
        for node in program.graph.nodes
        if node.op == "placeholder" and names.get(node.name) in values
    }


def _is_pure(node: Any) -> bool:
    """True for an operator that neither draws random numbers nor writes to its arguments."""
    import torch

    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable


def _evaluated(node: Any, known: dict[Any, Any]) -> Any:
    """The tensor that an operator makes of constants; None where it makes none, or a large one."""
    import torch

    made = node.meta.get("val")
    if not isinstance(made, torch.Tensor) or any(not isinstance(size, int) for size in made.shape):
        return None
    if made.numel() * made.element_size() > _MOST_BYTES:
        return None
    arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), lambda each: known[each])
    with torch.no_grad():
        return node.target(*arguments, **keywords)


def _replace(program: torch.export.ExportedProgram, node: Any, value: torch.Tensor) -> None:
    """Make a node a constant of the program, which is an input of its graph before those of the caller."""
    from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

    name = f"folded_{node.name}"
    specs = program.graph_signature.input_specs
    inputs = [each for each in program.graph.nodes if each.op == "placeholder"]
    index = next((i for i, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT), len(specs))
    before = inputs[index] if index < len(inputs) else next(iter(program.graph.nodes))
    with program.graph.inserting_before(before):
        constant = program.graph.placeholder(name)
    constant.meta["val"] = node.meta["val"]
    specs.insert(index, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name), name, None))
    program.constants[name] = value.contiguous()
    node.replace_all_uses_with(constant)
