"""`import_onnx`: imports an ONNX model as a Relax module.

Inputs and outputs that form a state are paired by names from the caller, or by common names. Symbolic dimensions of
states that a model requires to be a number are replaced by it, since some exports declare them as names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx
import tvm
from tvm import relax, tirx
from tvm.ir import IRModule

from compiler.artifact.manifest import IndexRequirement, Requirement
from compiler.errors import (
    CompilationError,
    InputError,
    InternalError,
    InvalidModelError,
    OptionError,
    Refusal,
    UnsupportedModelError,
)
from compiler.frontends.imported_model import ImportedModel, StateSpec, TensorSpec, selected_outputs
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.builder import Builder
from compiler.frontends.onnx.context import PoisonedInputError, RefusedError
from compiler.frontends.onnx.dtypes import carrier_of
from compiler.frontends.onnx.importer import Importer, Scope, to_tensor
from compiler.frontends.onnx.loading.loader import ModelSource, load_model
from compiler.frontends.onnx.registry import discover
from compiler.frontends.onnx.structure import declared_size, live_nodes, used_names
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import Constant, OptionalValue, Runtime, SequenceValue, Value, is_poisoned
from compiler.passes.canonicalize.spell_sizes import with_spelled_sizes
from compiler.passes.rewriting.size_variants import symbolic_dimensions
from compiler.support.formula import parsed, with_names
from schedules.ir.size_proofs import CONGRUENCES, Congruence


def import_onnx(
    source: ModelSource,
    *,
    shapes: Shapes | None = None,
    constants: Mapping[str, object] | None = None,
    outputs: Sequence[str] | None = None,
    state: Mapping[str, str] | None = None,
    congruences: Mapping[str, Congruence] | None = None,
) -> ImportedModel:
    """Import an ONNX model from a path, its bytes or an `onnx.ModelProto`.

    Args:
        source: the model; external data must be next to the file.
        shapes: sizes by input name; an int fixes a dimension, a str makes it symbolic, and equal for equal strings.
        constants: values of model inputs to fix at compile time; the module does not have these inputs.
        outputs: names of the results, in this order: outputs or other values of the main graph; None returns all
            outputs. Unneeded nodes are not imported.
        state: pairs of inputs and outputs, by names with "*"; None: pairs with common names.
        congruences: the caller's constraints on dimensions, by name, in addition to the model's.

    Raises InvalidModelError, StorageError, InputError, OptionError, UnsupportedModelError (for all refused nodes at
    once), or InputValueRequiredError if only input values are missing.
    """
    discover()
    model = load_model(source)
    graph = model.proto.graph
    importer = Importer(model)
    pairs = named_pairs(graph, state)
    chosen = None if outputs is None else [*outputs, *(each for each in pairs.values() if each not in outputs)]
    output_names = selected_outputs(
        chosen if state else outputs, [each.name for each in graph.output], _computed(model.nodes)
    )
    fixed = fixed_values(graph, model.initializers, constants)
    scope = Scope(values={**model.initializers, **fixed}, opsets=model.opsets)
    inputs = runtime_inputs(graph, set(scope.values), shapes, importer.builder)
    _know(importer, inputs, congruences or {})
    scope.values.update({item.spec.name: item.value for item in inputs})
    try:
        mod, specs = _build(importer, scope, inputs, output_names)
    except (InvalidModelError, CompilationError) as error:
        mismatch = other_sizes(graph, shapes)
        if mismatch is None:
            raise
        raise InputError(
            f"the model cannot take {mismatch}: {error.message}",
            "give the declared sizes, or export the model with these dimensions dynamic",
        ) from error
    arrays = {name: value.array for name, value in fixed.items() if isinstance(value, Constant)}
    checks = importer.builder.checks
    imported = ImportedModel(
        mod,
        [item.spec for item in inputs],
        specs,
        arrays,
        requirements=checks.requirements,
        indices=checks.indices,
        checks=tuple(checks.described),
        notes=tuple(importer.notes),
        nodes={name: (node,) for name, node in importer.builder.block_builder.nodes.items()},
    )
    imported = with_required_sizes(imported, pairs)
    return replace(imported, states=state_specs(pairs, imported.inputs, imported.outputs, strict=bool(state)))


def _know(importer: Importer, inputs: Sequence[RuntimeInput], congruences: Mapping[str, Congruence]) -> None:
    for item in inputs:
        for name, size in zip(item.spec.shape, item.variable.ty.shape.values, strict=True):
            if name in congruences and not isinstance(size, tirx.IntImm):
                importer.builder.arithmetic.spellings.know(size, congruences[str(name)])


def _computed(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    return [name for node in nodes for name in node.output if name]


def _build(
    importer: Importer, scope: Scope, inputs: list[RuntimeInput], output_names: list[str]
) -> tuple[tvm.IRModule, list[TensorSpec]]:
    block_builder = importer.builder.block_builder
    parameters = [item.variable for item in inputs]
    block_builder.begin_scope(parameters)
    block_builder._begin_binding_block()
    try:
        nodes = live_nodes(importer.model.nodes, output_names)
        scope.read = {*output_names}.union(*map(used_names, nodes))
        importer.import_nodes(nodes, scope)
        outputs = _outputs(importer, scope, output_names)
        importer.raise_refusals()
        if len(outputs) < len(output_names):
            raise InternalError(f"the outputs {sorted(set(output_names) - outputs.keys())} were lost while importing")
        result = block_builder.emit(relax.Tuple([value.expr for value in outputs.values()]))
    finally:
        block = block_builder._end_block()
        block_builder.end_scope()
    body = block_builder.normalize(relax.SeqExpr([block], result))
    function = relax.Function(parameters, body, is_pure=True).with_attr("global_symbol", "main")
    known = importer.builder.arithmetic.spellings.congruences
    if known:
        pairs = {name: [each.modulus, each.remainder] for name, each in known.items()}
        function = function.with_attr(CONGRUENCES, pairs)
    block_builder.add_func(function, "main")
    return _finish(block_builder.finalize()), [_spec(name, value) for name, value in outputs.items()]


def _spec(name: str, value: Runtime) -> TensorSpec:
    return TensorSpec(
        name, tuple(d if isinstance(d, int) else _text(d) for d in value.shape), value.dtype, carrier_of(value.dtype)
    )


def _text(size: tvm.ir.Expr) -> str:
    """Return an expression of sizes in readable form, without the types of its numbers."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))


def _outputs(importer: Importer, scope: Scope, output_names: list[str]) -> dict[str, Runtime]:
    outputs: dict[str, Runtime] = {}
    for name in output_names:
        value: Value | None = scope.lookup(name)
        if is_poisoned(value):
            continue
        try:
            outputs[name] = to_tensor(importer, value, name)
        except RefusedError as error:
            importer.refusals.append(error.refusal)
        except PoisonedInputError:
            continue
    return outputs


def _finish(mod: tvm.IRModule) -> tvm.IRModule:
    """Form dataflow blocks, remove dead code and check well-formedness.

    TVM infers operator types again when copying them, with its own spelling of sizes.
    """
    steps = [relax.transform.ConvertToDataflow(1), relax.transform.DeadCodeElimination(["main"])]
    try:
        mod = with_spelled_sizes(tvm.transform.Sequential(steps)(mod))
        relax.analysis.well_formed(mod)
    except Exception as error:  # any TVM error here is a bug in a converter
        raise InternalError(f"the imported module is not well formed: {error}") from error
    return mod


# Exporters' names for a state and its next value; "*" matches the same text in both.
USUAL_NAMES = (
    ("past_key_values.*", "present.*"),
    ("past_key_values.*", "present_key_values.*"),
    ("past_key_values_*", "present_key_values_*"),
    ("past_*", "present_*"),
    ("past.*", "present.*"),
    ("cache_*", "cache_*_next"),
    ("cache_*", "past_key_values_*"),
    ("*_cache", "r_*_cache"),
    ("*", "new_*"),
    ("in_cache*", "out_cache*"),
    ("input_states_*", "output_states_*"),
    ("state", "stateN"),
    ("state", "state_out"),
    ("h", "hn"),
    ("c", "cn"),
    ("h0", "hn"),
    ("c0", "cn"),
    ("h_in", "h_out"),
    ("c_in", "c_out"),
)


def named_pairs(graph: onnx.GraphProto, state: Mapping[str, str] | None) -> dict[str, str]:
    """Return the output for each input that is a state, by name.

    Raises OptionError if one of the caller's names matches no input, or an input has no matching output.
    """
    given = {each.name for each in graph.initializer}
    inputs = [each.name for each in graph.input if each.name not in given]
    outputs = {each.name for each in graph.output}
    if state is None:
        return _usual(inputs, outputs)
    pairs: dict[str, str] = {}
    for pattern, result in state.items():
        found = {name: _filled(pattern, result, name) for name in inputs}
        matched = {name: output for name, output in found.items() if output is not None}
        if not matched:
            raise OptionError(f"state= names no input by {pattern!r}", f"the inputs are {', '.join(inputs)}")
        for name, output in matched.items():
            if output not in outputs:
                what = f"state= makes {output!r} the next value of {name!r}, but no output has that name"
                raise OptionError(what, f"the outputs are {', '.join(sorted(outputs))}")
            pairs[name] = output
    if len(set(pairs.values())) != len(pairs):
        raise OptionError("state= makes one output the next value of two inputs")
    return pairs


def _usual(inputs: Iterable[str], outputs: set[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name in inputs:
        for pattern, result in USUAL_NAMES:
            output = _filled(pattern, result, name)
            if output in outputs and output not in pairs.values():
                pairs[name] = str(output)
                break
    return pairs


def _filled(pattern: str, result: str, name: str) -> str | None:
    """Return the output's name for an input's; None if the name does not match the pattern."""
    match = re.fullmatch("(.+)".join(map(re.escape, pattern.split("*"))), name)
    if match is None:
        return None
    texts = iter(match.groups())
    return re.sub(r"\*", lambda _: next(texts, ""), result)


def state_specs(
    pairs: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, strict: bool
) -> tuple[StateSpec, ...]:
    """Return the pairs that are states by their shapes: equal ones, or longer along one symbolic axis.

    With `strict`, raises OptionError for a pair that is not a state.
    """
    by_name = {spec.name: spec for spec in inputs}
    results = {spec.name: spec for spec in outputs}
    states = []
    for name, output in pairs.items():
        if name not in by_name or output not in results:  # fixed at compile time, or not selected
            continue
        state = _state(by_name[name], results[output])
        if state is not None:
            states.append(state)
        elif strict:
            raise OptionError(
                f"{by_name[name]} and {results[output]} are not a state: they differ in more than one symbolic axis",
                "give their sizes in shapes=",
            )
    return tuple(states)


def _state(source: TensorSpec, result: TensorSpec) -> StateSpec | None:
    if source.dtype != result.dtype or len(source.shape) != len(result.shape):
        return None
    different = [axis for axis, (a, b) in enumerate(zip(source.shape, result.shape, strict=True)) if a != b]
    if not different:
        return StateSpec(source.name, source.name, result.name)
    if len(different) > 1 or not isinstance(source.shape[different[0]], str):
        return None
    return StateSpec(source.name, source.name, result.name, axis=different[0], grows=True)


Shapes = Mapping[str, Sequence[int | str]]


@dataclass(frozen=True)
class RuntimeInput:
    """An input tensor of the module: its original name, its variable, and its value in the graph."""

    spec: TensorSpec
    variable: tvm.ir.Var
    value: Runtime


def fixed_values(
    graph: onnx.GraphProto, initializers: Mapping[str, Constant], constants: Mapping[str, object] | None
) -> dict[str, Value]:
    """Return values of the inputs fixed by the caller. Raises InputError for mismatched names, types or shapes."""
    specs = {spec.name: spec for spec in graph.input}
    fixed: dict[str, Value] = {}
    for name, value in (constants or {}).items():
        if name not in specs:
            raise InputError(_unknown_name("constants", name, list(specs)))
        fixed[name] = _fixed_value(specs[name], value)
    return fixed


def _fixed_value(spec: onnx.ValueInfoProto, value: object) -> Value:
    kind = spec.type.WhichOneof("value")
    if kind == "optional_type":
        if value is None:
            return OptionalValue(None)
        inner = onnx.ValueInfoProto(name=spec.name, type=spec.type.optional_type.elem_type)
        return OptionalValue(_fixed_value(inner, value))
    if kind == "sequence_type":
        element = onnx.ValueInfoProto(name=spec.name, type=spec.type.sequence_type.elem_type)
        number = element.type.tensor_type.elem_type
        items = [_fixed_value(element, item) for item in value]  # type: ignore[attr-defined]
        return SequenceValue(items, dtypes.dtype_name(number))
    return _fixed_tensor(spec, value)


def _fixed_tensor(spec: onnx.ValueInfoProto, value: object) -> Constant:
    array = np.asarray(value)
    tensor = spec.type.tensor_type
    expected = dtypes.dtype_name(tensor.elem_type)
    dtype = "string" if array.dtype.kind in "OUS" else array.dtype.name
    if expected is not None and dtype != expected:
        raise InputError(f"the constant for input {spec.name!r} is {dtype}, the model's input {expected}")
    if dtype == "string":
        array = array.astype(object)
    if tensor.HasField("shape"):
        declared = map(declared_size, tensor.shape.dim)
        dims = [size if isinstance(size, int) else None for size in declared]
        if len(dims) != array.ndim or any(d not in (None, s) for d, s in zip(dims, array.shape, strict=True)):
            raise InputError(f"the constant for input {spec.name!r} has shape {array.shape}, the model's input {dims}")
    return Constant(array, dtype)


def runtime_inputs(
    graph: onnx.GraphProto, excluded: set[str], shapes: Shapes | None, builder: Builder
) -> list[RuntimeInput]:
    """Return the remaining inputs, with symbolic sizes shared by name and the caller's shapes applied.

    Raises InputError for mismatched shapes, UnsupportedModelError for inputs that are not tensors.
    """
    names = [spec.name for spec in graph.input]
    for name in shapes or {}:
        if name not in names:
            raise InputError(_unknown_name("shapes", name, names))
    specs = [spec for spec in graph.input if spec.name not in excluded]
    _refuse_other_than_tensors(specs)
    declared = {spec.name: _dims(spec, (shapes or {}).get(spec.name)) for spec in specs}
    sizes = _fixed_sizes(specs, declared)
    symbols: dict[str, Dim] = {}
    return [_runtime_input(spec, declared[spec.name], sizes, symbols, builder) for spec in specs]


def _runtime_input(
    spec: onnx.ValueInfoProto, dims: list[int | str], sizes: dict[str, int], symbols: dict[str, Dim], builder: Builder
) -> RuntimeInput:
    shape: list[Dim] = []
    for dim in dims:
        size = sizes.get(dim, dim) if isinstance(dim, str) else dim
        if isinstance(size, str):
            if size not in symbols:
                symbols[size] = builder.dimension(size)
                builder.checks.inputs[symbols[size]] = size
            shape.append(symbols[size])
        else:
            shape.append(size)
    dtype = dtypes.NAMES[spec.type.tensor_type.elem_type]
    carrier = dtypes.carrier(dtype)
    variable = tvm.ir.Var(builder.unique_name(spec.name), relax.TensorType(shape, carrier))
    builder.checks.input_names[variable] = spec.name
    names = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)
    described = TensorSpec(spec.name, names, dtype, dtypes.carrier_of(dtype))
    return RuntimeInput(described, variable, Runtime(variable, dtype, frozenset({spec.name})))


def _refuse_other_than_tensors(specs: list[onnx.ValueInfoProto]) -> None:
    refusals = []
    for spec in specs:
        kind = spec.type.WhichOneof("value")
        dtype = dtypes.dtype_name(spec.type.tensor_type.elem_type) if kind == "tensor_type" else None
        if kind != "tensor_type":
            reason = f"is of kind {(kind or 'unknown').removesuffix('_type')}; only tensors can be passed at run time"
            refusals.append(Refusal("model input", spec.name, reason))
        elif dtype is None or not dtypes.is_carried(dtype):
            refusals.append(Refusal("model input", spec.name, f"{dtype} tensors are not supported at run time"))
    if refusals:
        raise UnsupportedModelError(refusals, "fix the value when compiling: compile(..., constants={name: value})")


def _dims(spec: onnx.ValueInfoProto, override: Sequence[int | str] | None) -> list[int | str]:
    """Return a declared shape overridden by the caller's; an unnamed size gets its own name."""
    tensor = spec.type.tensor_type
    if not tensor.HasField("shape"):
        if override is None:
            hint = f"give it: shapes={{{spec.name!r}: (...)}}"
            raise InputError(f"the model does not say how many dimensions its input {spec.name!r} has", hint)
        return [_checked_size(spec.name, size) for size in override]
    dims: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        size = declared_size(dim)
        dims.append(unnamed_size(spec.name, axis) if size is None else size)
    if override is None:
        return dims
    if len(override) != len(dims):
        raise InputError(f"shapes: input {spec.name!r} has {len(dims)} dimensions {tuple(dims)}, not {len(override)}")
    return [_checked_size(spec.name, size) for size in override]


def unnamed_size(name: str, axis: int) -> str:
    """Return the name of a dynamic input size for which the model has none."""
    return f"{name}_dim{axis}"


def other_sizes(graph: onnx.GraphProto, shapes: Shapes | None) -> str | None:
    """Describe the inputs with other sizes than the model declares, given by the caller; None if there are none."""
    mismatches = []
    for spec in graph.input:
        requested = (shapes or {}).get(spec.name)
        if requested is None or not spec.type.tensor_type.HasField("shape"):
            continue
        declared = [declared_size(dim) for dim in spec.type.tensor_type.shape.dim]
        if any(isinstance(known, int) and size != known for size, known in zip(requested, declared, strict=False)):
            texts = [", ".join("?" if size is None else str(size) for size in sizes) for sizes in (requested, declared)]
            mismatches.append(f"{spec.name!r} as [{texts[0]}], which it declares as [{texts[1]}]")
    return ", and ".join(mismatches) or None


def _checked_size(name: str, size: object) -> int | str:
    if isinstance(size, str) and size and not size.lstrip("+-").isdecimal():
        return size
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0:
        return int(size)
    raise InputError(
        f"shapes: {size!r} is not a size of input {name!r}", "use an int from 0 on, or the name of a symbolic size"
    )


def _fixed_sizes(specs: list[onnx.ValueInfoProto], declared: dict[str, list[int | str]]) -> dict[str, int]:
    """Return the sizes fixed by the caller, by the model's own dimension names, so that they reach every input."""
    sizes: dict[str, int] = {}
    for spec in specs:
        dims = spec.type.tensor_type.shape.dim
        for dim, size in zip(dims, declared[spec.name], strict=False):
            name = declared_size(dim)
            if isinstance(name, str) and isinstance(size, int) and sizes.setdefault(name, size) != size:
                raise InputError(f"shapes: the dimension {name!r} is given two sizes, {sizes[name]} and {size}")
    return sizes


def _unknown_name(argument: str, name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    suggestion = f"did you mean {near[0]!r}?" if near else f"its inputs are {', '.join(map(repr, names))}"
    return f"{argument}: the model has no input {name!r}; {suggestion}"


_ENTRY = "main"


def with_required_sizes(model: ImportedModel, inputs: Collection[str]) -> ImportedModel:
    """Return the model with input dimensions that must equal a number replaced by it."""
    names = {size for spec in model.inputs if spec.name in inputs for size in spec.shape if isinstance(size, str)}
    sizes = {name: size for name, size in _required(model.requirements) if name in names}
    if not sizes:
        return model
    main = model.mod[_ENTRY]
    variables = symbolic_dimensions(main.params)
    bound = main.bind_symbolic_vars({variables[name]: size for name, size in sizes.items()})
    functions = {var: bound if var.name_hint == _ENTRY else each for var, each in model.mod.functions_items()}
    return replace(
        model,
        mod=IRModule(functions, attrs=model.mod.attrs, global_infos=model.mod.global_infos),
        inputs=[_described(spec, sizes) for spec in model.inputs],
        outputs=[_described(spec, sizes) for spec in model.outputs],
        requirements=tuple(_sized(each, sizes) for each in model.requirements if not _is_met(each, sizes)),
        indices=tuple(_sized_index(each, sizes) for each in model.indices),
    )


def _required(requirements: Collection[Requirement]) -> Iterator[tuple[str, int]]:
    """Yield dimensions that must equal a number, with the number."""
    for requirement in requirements:
        if requirement.relation == "equal":
            for symbol, value in ((requirement.left, requirement.right), (requirement.right, requirement.left)):
                if symbol in requirement.symbols and value.isdecimal():
                    yield requirement.symbols[symbol], int(value)


def _described(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    return replace(spec, shape=tuple(_number(_with_sizes(size, sizes)) for size in spec.shape))


def _with_sizes(formula: int | str, sizes: Mapping[str, int]) -> int | str:
    """Return a size with names replaced by known numbers."""
    if isinstance(formula, int):
        return formula
    return with_names(formula, lambda name: str(sizes.get(name, name)))


def _number(size: int | str) -> int | str:
    return size if isinstance(size, int) or parsed(size).names else parsed(size).value({})


def _own(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers, by a formula's names for the dimensions."""
    return {name: sizes[dimension] for name, dimension in symbols.items() if dimension in sizes}


def _left(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, str]:
    return {name: dimension for name, dimension in symbols.items() if dimension not in sizes}


def _is_met(requirement: Requirement, sizes: Mapping[str, int]) -> bool:
    """True if all of its dimensions have known sizes and it does not determine another one."""
    return all(dimension in sizes for dimension in requirement.symbols.values()) and bool(
        list(_required([requirement]))
    )


def _sized(requirement: Requirement, sizes: Mapping[str, int]) -> Requirement:
    own = _own(requirement.symbols, sizes)
    left, right = (str(_with_sizes(each, own)) for each in (requirement.left, requirement.right))
    return msgspec.structs.replace(requirement, left=left, right=right, symbols=_left(requirement.symbols, sizes))


def _sized_index(index: IndexRequirement, sizes: Mapping[str, int]) -> IndexRequirement:
    own = _own(index.symbols, sizes)
    least = None if index.least is None else str(_with_sizes(index.least, own))
    return msgspec.structs.replace(
        index, size=str(_with_sizes(index.size, own)), least=least, symbols=_left(index.symbols, sizes)
    )
