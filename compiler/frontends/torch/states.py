"""Buffers and inputs that a program writes to: they become pairs of inputs and outputs (the new values)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from compiler.errors import OptionError, Refusal, UnsupportedModelError
from compiler.frontends.imported_model import ImportedModel, StateSpec
from compiler.frontends.torch.buffers import with_shared_buffers
from compiler.frontends.torch.constants import writes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ProgramState:
    """A state that a program writes: its name, its graph input, and its initial value."""

    name: str
    placeholder: str
    initial: Any


def with_states(
    program: torch.export.ExportedProgram, wanted: Collection[str] | None
) -> tuple[torch.export.ExportedProgram, list[ProgramState]]:
    """Return the program as a function whose inputs and first outputs are its states; unchanged if it writes to none.

    In-place operators on intermediate values are replaced by functional ones. Buffers that the program writes to are
    states; inputs that it writes to are states if `wanted`; "*" means all of them.

    Raises:
        UnsupportedModelError: the program writes to an input that is not wanted, or its buffers overlap.
        OptionError: it does not write to a wanted input.
    """
    every = "*" in (wanted or ())
    if not any(writes(node.target) for node in program.graph.nodes) and (every or not wanted):
        return program, []
    functional = with_shared_buffers(program).run_decompositions({})
    signature = functional.graph_signature
    buffers, inputs = dict(signature.buffers_to_mutate), dict(signature.user_inputs_to_mutate)
    if every:
        wanted = {*(wanted or ()), *inputs.values()} - {"*"}
    refused = [name for name in inputs.values() if name not in (wanted or ())]
    if refused:
        raise UnsupportedModelError(
            [Refusal("mutation", name, "the model writes to this input while running") for name in refused],
            f"name it in state= ({refused[0]!r}), or return the new value as an output instead",
        )
    unknown = sorted(set(wanted or ()) - {*buffers.values(), *inputs.values()})
    if unknown:
        raise OptionError(f"state= names {unknown[0]!r}, which the model does not write to")
    return _functional(functional) if buffers or inputs else (functional, [])


def _functional(program: torch.export.ExportedProgram) -> tuple[torch.export.ExportedProgram, list[ProgramState]]:
    """Turn mutations into ordinary inputs and outputs of the signature; the graph is unchanged."""
    from torch.export import ExportedProgram
    from torch.export.graph_signature import (
        ExportGraphSignature,
        InputKind,
        InputSpec,
        OutputKind,
        OutputSpec,
        TensorArgument,
    )

    signature = program.graph_signature
    kinds = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
    mutated = [spec.target for spec in signature.output_specs if spec.kind in kinds]
    states, inputs = {}, []
    for spec in signature.input_specs:
        buffer = spec.kind == InputKind.BUFFER
        name = spec.target if buffer else getattr(spec.arg, "name", None)
        if name in mutated and (buffer or spec.kind == InputKind.USER_INPUT):
            value = _value(program, spec.target) if buffer else None
            states[name] = ProgramState(str(name), spec.arg.name, value)
            spec = InputSpec(InputKind.USER_INPUT, TensorArgument(name=spec.arg.name), None)
        inputs.append(spec)
    outputs = [
        OutputSpec(OutputKind.USER_OUTPUT, spec.arg, None) if spec.kind in kinds else spec
        for spec in signature.output_specs
    ]
    constants = {name: value for name, value in program.state_dict.items() if name not in states}
    changed = ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=constants,
        range_constraints=program.range_constraints,
        module_call_graph=[_flat_call(inputs, outputs)],
        example_inputs=None,
        constants={name: value for name, value in program.constants.items() if name not in states},
        verifiers=[program.verifier],
    )
    return changed, [states[name] for name in mutated]


def _flat_call(inputs: list[Any], outputs: list[Any]) -> Any:
    """Return the call spec of a program that takes tensors by name and returns a tuple of them."""
    from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
    from torch.export.graph_signature import InputKind
    from torch.utils._pytree import tree_structure

    given = {spec.arg.name: 0 for spec in inputs if spec.kind == InputKind.USER_INPUT}
    taken, returned = tree_structure(((), given)), tree_structure((0,) * len(outputs))
    return ModuleCallEntry("", ModuleCallSignature([], [], taken, returned))


def name_states(onnx_program: Any, states: list[ProgramState]) -> None:
    """Rename the inputs of the ONNX model that are states."""
    names = {state.placeholder: state.name for state in states}
    for value in onnx_program.model.graph.inputs:
        value.name = names.get(value.name, value.name)


def output_name(state: ProgramState) -> str:
    """Return the name of the output that is a state's next value."""
    return f"{state.name}_next"


def model_with_states(model: ImportedModel, states: list[ProgramState], *, usual: bool) -> ImportedModel:
    """Return the imported model with its remaining states, with the sizes of the program's buffers.

    `usual`: pairs were found by name; those that grow are states as well.
    """
    have = {spec.name for spec in model.inputs}
    specs = [
        StateSpec(state.name, state.name, output_name(state), initial=_array(state.initial))
        for state in states
        if state.name in have
    ]
    own = {spec.input for spec in specs}
    pairs = [each for each in model.states if each.input not in own and (each.grows or not usual)]
    return replace(model, states=(*specs, *pairs))


def _value(program: torch.export.ExportedProgram, name: str) -> Any:
    return program.state_dict[name] if name in program.state_dict else program.constants[name]


def _array(tensor: Any) -> np.ndarray | None:
    """Return a tensor's value as a numpy array."""
    if tensor is None:
        return None
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy()).copy()
