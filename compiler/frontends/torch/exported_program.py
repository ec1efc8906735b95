"""Import of a `torch.nn.Module` or `ExportedProgram`, through an ONNX model in memory.

If the conversion to ONNX fails, operators that depend only on parameters and constants are evaluated: an operator
without a conversion may be applied only to constants (`Normal.icdf` of a constant in Gemma 3n). This also folds weights
that are merely rearranged, which costs memory, so nothing is folded before a conversion has failed.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import (
    InvalidModelError,
    Refusal,
    StorageError,
    TensorwrightError,
    UnsupportedModelError,
)
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.onnx import import_onnx
from compiler.frontends.onnx.frontend import unnamed_size
from compiler.frontends.torch.capture import exported_program, quiet
from compiler.frontends.torch.constants import constants_propagated, propagated_elements, writes
from compiler.frontends.torch.decomposition import decomposed, decomposed_operators, without_projections
from compiler.frontends.torch.even_parts import refuse_even_parts, write_out_even_parts, write_out_sized_parts
from compiler.frontends.torch.exporter_patches import patched_exporter, without_rewriting
from compiler.frontends.torch.fixed_sizes import OpenSizes
from compiler.frontends.torch.in_place import (
    refuse_windows,
    write_out_activations,
    write_out_diagonals,
    write_out_elements,
    write_out_windows,
)
from compiler.frontends.torch.requirements import ProgramRequirements, congruences
from compiler.frontends.torch.results import complex_notes, result_names
from compiler.frontends.torch.states import model_with_states, name_states, output_name, with_states
from compiler.frontends.torch.translations import translations
from compiler.support.model_files import check_is_model_file
from compiler.support.optional import optional_module

if TYPE_CHECKING:
    import torch

# ONNX's protobuf format is limited to 2 GiB; above this size the weights go to a separate file.
_LARGEST_PROTO_BYTES = 1 << 30
# The exporter's message about a node; a higher-order operator is only a name.
_NODE = re.compile(
    r"Error when translating node %(?P<node>\w+) .*?target=(torch\.ops\.)?(?P<operator>[\w.]+)\]", re.DOTALL
)
_NO_CONVERSION = "PyTorch's ONNX exporter has no conversion for it"


def import_torch(
    source: Any,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    outputs: Sequence[str] | None = None,
    state: Mapping[str, str] | Collection[str] | None = None,
) -> ImportedModel:
    """Import a PyTorch model. Inputs have the names of `forward`'s arguments; outputs are named output_0, output_1,
    ..., or after the keys and fields of the dictionaries, dataclasses and caches that the model returns
    ("hidden_states_0", "past_key_values_0_keys").

    Args:
        source: a `torch.nn.Module` or a `torch.export.ExportedProgram`.
        example_inputs: positional arguments for a `torch.nn.Module`, or a dictionary of keyword arguments; they give
            ranks, data types and fixed sizes. A `DynamicCache` of transformers becomes the keys and values of each
            layer in turn, inputs "cache_0_keys", "cache_0_values", ..., and a list of as many entries in
            `dynamic_shapes`.
        dynamic_shapes: see `torch.export.export`: the dimensions that stay symbolic.
        outputs: names of the outputs to return, in this order; all if None.
        state: names of the inputs that the model writes to, which then are states; "*" for all of them. Buffers that it
            writes to always are states. Or pairs of inputs and the outputs that are their next values, as for ONNX
            models;
            None: the keys and values of a `DynamicCache`, which grow.

    Raises:
        OptionError: no example inputs, a module in training mode, or an unknown name in `outputs`.
        InvalidModelError: `torch.export` cannot capture the module.
        UnsupportedModelError: an operator has no conversion.
        MissingDependencyError: onnxscript is not installed.
    """
    program = exported_program(source, example_inputs, dynamic_shapes)
    options = {"shapes": shapes, "constants": constants, "outputs": outputs}
    with nullcontext() if program is source else constants_propagated(propagated_elements(program)):
        return _of_program(program, source, dynamic_shapes, state, options)


def _of_program(
    program: torch.export.ExportedProgram,
    source: Any,
    dynamic_shapes: Any,
    state: Mapping[str, str] | Collection[str] | None,
    options: Mapping[str, Any],
) -> ImportedModel:
    """Import a program, captured from `source` if that is a module; `options` are those of `import_onnx`."""
    results = result_names(program.call_spec.out_spec, len(program.graph_signature.user_outputs))
    complex_results = complex_notes(program)
    is_exported = program is source
    sizes = OpenSizes(program, {} if is_exported else inspect.signature(source.forward).parameters, dynamic_shapes)
    if is_exported:
        refuse_even_parts(program)
        refuse_windows(program)
    else:
        _prepare_writes(program)
    with quiet(), patched_exporter(), _refused_if_untraceable():
        program, states = with_states(program, None if isinstance(state, Mapping) else state)
    needs, known = ProgramRequirements(program), congruences(program)
    with quiet(), patched_exporter():
        if program is source:  # the caller's own program, whose graph must not be modified
            program = program.run_decompositions({})
        write_out_even_parts(program)
        write_out_sized_parts(program)
        _view_copies(program)
        program = _rewritten(program)
    _view_copies(program)
    onnx_program = _to_onnx(program)
    needs.add(sizes.added())
    name_states(onnx_program, states)
    _name_outputs(onnx_program, [*(output_name(each) for each in states), *results])
    _fix_known_sizes(onnx_program)
    names = _name_sizes(onnx_program, sizes.names())
    known = {_renamed(size, names): each for size, each in known.items()}
    large = sum(tensor.nbytes for tensor in program.state_dict.values()) >= _LARGEST_PROTO_BYTES
    outputs = options["outputs"]
    output_names = None if outputs is None else [*outputs, *(output_name(each) for each in states)]
    pairs = state if isinstance(state, Mapping) else None if state is None else {}
    options = {**options, "outputs": output_names, "state": pairs, "congruences": known}
    model = model_with_states(_imported(onnx_program, large, options), states, usual=state is None)
    returned = {spec.name for spec in model.outputs}
    notes = [note for name, note in complex_results.items() if name in returned]
    return replace(needs.added_to(model), notes=(*model.notes, *notes))


def _prepare_writes(program: torch.export.ExportedProgram) -> None:
    """Prepare in-place operators for `run_decompositions`, which would fix sizes or lose elements."""
    write_out_activations(program)
    if any(writes(node.target) for node in program.graph.nodes):
        write_out_elements(program)
        write_out_diagonals(program)
        write_out_windows(program)
        write_out_even_parts(program)
        write_out_sized_parts(program)


def _imported(onnx_program: Any, large: bool, options: Mapping[str, Any]) -> ImportedModel:
    """Import the ONNX model from memory, or from a file if it is `large`."""
    if not large:
        return import_onnx(onnx_program.model_proto, **options)
    try:
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            path = Path(folder) / "model.onnx"
            onnx_program.save(str(path), external_data=True)
            return import_onnx(path, **options)
    except OSError as error:
        raise StorageError(f"the exported model could not be stored: {error}", "free space in TMPDIR") from error


def _rewritten(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program without operators that have a decomposition of our own."""
    with _refused_if_untraceable():
        return decomposed(without_projections(program))


@contextmanager
def _refused_if_untraceable() -> Iterator[None]:
    """Context that raises UnsupportedModelError if torch cannot trace the program again."""
    try:
        yield
    except TensorwrightError:
        raise
    except Exception as error:  # tracing may raise anything, e.g. for sizes of 0
        reason = str(error).split("\n", 1)[0]
        raise UnsupportedModelError([Refusal("torch.export", "model", f"{type(error).__name__}: {reason}")]) from error


def import_torch_file(
    path: Path,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] | None = None,
    state: Mapping[str, str] | Collection[str] | None = None,
) -> ImportedModel:
    """Import a file written by `torch.export.save`. Raises like `import_torch`."""
    return import_torch(read_program(path), shapes=shapes, constants=constants, outputs=outputs, state=state)


def read_program(path: Path) -> torch.export.ExportedProgram:
    """Read the program in a file written by `torch.export.save`. Raises InvalidModelError, MissingDependencyError."""
    torch = _torch()
    try:
        return torch.export.load(str(path))
    except Exception as error:  # torch's errors depend on the broken part
        check_is_model_file(path, exported_program=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidModelError(f"{path} is not a program saved by torch.export.save: {reason}") from error


def _torch() -> Any:
    return optional_module("torch", "torch", "reads exported programs")


def _view_copies(program: torch.export.ExportedProgram) -> None:
    """Replace views by views of contiguous copies, which cost nothing in ONNX.

    The strides a view was captured with are those of one attention backend, or of a tensor written in place; the
    exporter's decomposition of attention has others, as does the program without these writes, and tracing fails on a
    view whose strides do not match (T5, in torch 2.13). The program has no writes.
    """
    torch = _torch()
    aten = torch.ops.aten
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in (aten.view.default, aten.reshape.default):
            continue
        source = node.args[0]
        if source.target is aten.clone.default:
            continue
        with graph.inserting_before(node):
            copy = graph.call_function(aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
        if "val" in source.meta:  # data-dependent sizes are bound only by the source
            copy.meta = {key: value for key, value in source.meta.items() if key != "unbacked_bindings"}
            copy.meta["val"] = source.meta["val"].contiguous()
        node.args = (copy, *node.args[1:])


def _to_onnx(program: torch.export.ExportedProgram) -> Any:
    """Convert the program to ONNX. If an operator has no conversion, decompose composite operators and evaluate
    constant ones."""
    optional_module("onnxscript", "torch", "converts PyTorch operators")
    try:
        return _converted(program)
    except UnsupportedModelError as refusal:
        try:
            simpler = with_folded_constants(decomposed(program.run_decompositions({})))
        except Exception as error:  # tracing an operator whose shapes torch does not know may raise anything
            raise refusal from error
        return _converted(simpler)


def _converted(program: torch.export.ExportedProgram) -> Any:
    torch = _torch()
    # Its optimizer folds bfloat16 normalizations into float32 weights.
    foldable = all(tensor.dtype != torch.bfloat16 for tensor in program.state_dict.values())
    try:
        # Without autograd, for which `scan` would also return the sizes that its gradient needs.
        with torch._C._AutoDispatchBelowAutograd(), quiet(), patched_exporter(), without_rewriting() as folds_alone:
            return torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=folds_alone and foldable,
                custom_translation_table=translations(program),
            )
    except Exception as error:  # the exporter wraps anything that a conversion raises
        raise UnsupportedModelError([_refusal(error)]) from error


def _refusal(error: BaseException) -> Refusal:
    """Return the node that the exporter failed on, and the innermost reason."""
    texts = [str(error).strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error).strip())
    node = next((match for each in texts if (match := _NODE.match(each)) is not None), None)
    if node is None:
        return Refusal("torch.export", "model", texts[min(1, len(texts) - 1)])
    reason = texts[-1]
    if reason.startswith("No ONNX function found"):
        partly = node["operator"] in decomposed_operators()
        reason = "these types, options or sizes of it are not supported" if partly else _NO_CONVERSION
    return Refusal(node["operator"].removesuffix(".default"), node["node"], reason)


def _name_outputs(onnx_program: Any, names: list[str]) -> None:
    """Name the outputs, renaming other values with these names. Returned inputs, and values returned twice, become
    copies."""
    import onnx_ir

    graph = onnx_program.model.graph
    used, named = {value.name for value in graph.inputs}, {*graph.inputs}
    for number, name in enumerate(names):
        value = graph.outputs[number]
        if value in named:
            copy = onnx_ir.Node("", "Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            value = graph.outputs[number] = copy.outputs[0]
        while name in used:
            name = f"{name}_out"
        value.name = name
        used.add(name)
        named.add(value)


def _fix_known_sizes(onnx_program: Any) -> None:
    """Replace sizes of inputs that `torch.export` found to be constant; its exporter emits symbolic dimensions for
    them."""
    for value in onnx_program.model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            text = getattr(size, "value", None)
            if isinstance(text, str) and text.isdecimal():
                value.shape[axis] = int(text)


def _name_sizes(onnx_program: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Name dynamic sizes after their `Dim`s, given in `names` by symbol, or like unnamed sizes of ONNX models; return
    all names."""
    import onnx_ir

    graph = onnx_program.model.graph
    known = dict(names)
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if _SYMBOL.fullmatch(str(getattr(size, "value", ""))):
                known.setdefault(size.value, unnamed_size(value.name, axis))
    produced = (value for node in onnx_ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs)
    for value in (*graph.inputs, *produced):
        sizes = [getattr(size, "value", size) for size in value.shape or ()]
        if any(isinstance(size, str) for size in sizes):  # a new shape, since values that share one freeze it
            value.shape = onnx_ir.Shape([_renamed(size, known) if isinstance(size, str) else size for size in sizes])
    return known


_SYMBOL = re.compile(r"\bs\d+\b")


def _renamed(size: str, names: Mapping[str, str]) -> str:
    return _SYMBOL.sub(lambda symbol: names.get(symbol[0], symbol[0]), size)


_MAX_BYTES = 1 << 26
"""Size limit of a folded value: larger ones result from expansions rather than from computations on constants."""


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
    """Return the values of inputs that are parameters, constants, or buffers that are never written."""
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
    """Return the tensor that an operator computes from constants; None if there is none, or it is large."""
    import torch

    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor) or any(not isinstance(size, int) for size in result.shape):
        return None
    if result.numel() * result.element_size() > _MAX_BYTES:
        return None
    arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), lambda each: known[each])
    with torch.no_grad():
        return node.target(*arguments, **keywords)


def _replace(program: torch.export.ExportedProgram, node: Any, value: torch.Tensor) -> None:
    """Turn a node into a constant of the program: a graph input that precedes the caller's."""
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
