"""`import_onnx`: a model becomes a Relax module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx
import tvm
from tvm import relax, tirx

from compiler.errors import CompilationError, InputError, InternalError, InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, StateSpec, TensorSpec
from compiler.frontends.onnx.context import PoisonedInputError, RefusedError
from compiler.frontends.onnx.dtypes import carrier_of
from compiler.frontends.onnx.importer import Importer, Scope, to_tensor
from compiler.frontends.onnx.inputs import RuntimeInput, Shapes, fixed_values, other_sizes, runtime_inputs
from compiler.frontends.onnx.loading.loader import ModelSource, load_model
from compiler.frontends.onnx.registry import discover
from compiler.frontends.onnx.structure import live_nodes, used_names
from compiler.frontends.onnx.values import Constant, Runtime, Value, is_poisoned
from compiler.frontends.output_selection import selected_outputs
from compiler.frontends.required_sizes import with_required_sizes
from compiler.passes.canonicalize.spell_sizes import with_spelled_sizes
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
    """Import an ONNX model: a path, its bytes or an `onnx.ModelProto`.

    Args:
        source: the model; external data are looked for next to the file.
        shapes: sizes by input name; an int fixes a dimension, a str makes it symbolic and equal wherever it occurs.
        constants: values of model inputs known when compiling; they are no longer inputs of the module.
        outputs: names of what to return, in this order: outputs or other values of the main graph; all outputs when
            None. What nothing else needs is not imported.
        state: pairs of inputs and outputs, by names with "*"; None: those of the usual names.
        congruences: the caller's constraints on dimensions, by name, in addition to the model's.

    Raises InvalidModelError, StorageError, InputError, OptionError, UnsupportedModelError (all refused nodes at
    once), or InputValueRequiredError when nothing but values of inputs is missing.
    """
    discover()
    model = load_model(source)
    graph = model.proto.graph
    importer = Importer(model)
    pairs = named_pairs(graph, state)
    chosen = None if outputs is None else [*outputs, *(each for each in pairs.values() if each not in outputs)]
    wanted = selected_outputs(
        chosen if state else outputs, [each.name for each in graph.output], _computed(model.nodes)
    )
    fixed = fixed_values(graph, model.initializers, constants)
    scope = Scope(values={**model.initializers, **fixed}, opsets=model.opsets)
    inputs = runtime_inputs(graph, set(scope.values), shapes, importer.builder)
    _know(importer, inputs, congruences or {})
    scope.values.update({item.spec.name: item.value for item in inputs})
    try:
        mod, specs = _build(importer, scope, inputs, wanted)
    except (InvalidModelError, CompilationError) as error:
        other = other_sizes(graph, shapes)
        if other is None:
            raise
        raise InputError(
            f"the model cannot take {other}: {error.message}",
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
    importer: Importer, scope: Scope, inputs: list[RuntimeInput], wanted: list[str]
) -> tuple[tvm.IRModule, list[TensorSpec]]:
    block_builder = importer.builder.block_builder
    parameters = [item.variable for item in inputs]
    block_builder.begin_scope(parameters)
    block_builder._begin_binding_block()
    try:
        nodes = live_nodes(importer.model.nodes, wanted)
        scope.read = {*wanted}.union(*map(used_names, nodes))
        importer.import_nodes(nodes, scope)
        outputs = _outputs(importer, scope, wanted)
        importer.raise_refusals()
        if len(outputs) < len(wanted):
            raise InternalError(f"the outputs {sorted(set(wanted) - outputs.keys())} were lost while importing")
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
    """An expression of sizes as a person writes it, without the types of its numbers."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))


def _outputs(importer: Importer, scope: Scope, wanted: list[str]) -> dict[str, Runtime]:
    outputs: dict[str, Runtime] = {}
    for name in wanted:
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
    """Dataflow blocks made, dead code removed, well-formedness checked.

    TVM infers the types of operators again when it copies them, in its own spelling of sizes.
    """
    steps = [relax.transform.ConvertToDataflow(1), relax.transform.DeadCodeElimination(["main"])]
    try:
        mod = with_spelled_sizes(tvm.transform.Sequential(steps)(mod))
        relax.analysis.well_formed(mod)
    except Exception as error:  # whatever TVM raises here is a defect of a converter
        raise InternalError(f"the imported module is not well formed: {error}") from error
    return mod


# Exporters' names for a state and its next value; "*" is the same text in both.
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
    """The output for each input that is a state, by names alone.

    Raises OptionError where one of the caller's names matches no input, or no output goes with an input.
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
                what = f"state= makes {output!r} the next value of {name!r}, and no output has that name"
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
    """The output's name for an input's; None where the pattern is not that of the name."""
    match = re.fullmatch("(.+)".join(map(re.escape, pattern.split("*"))), name)
    if match is None:
        return None
    texts = iter(match.groups())
    return re.sub(r"\*", lambda _: next(texts, ""), result)


def state_specs(
    pairs: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, strict: bool
) -> tuple[StateSpec, ...]:
    """The pairs that are states by their shapes: equal ones, or longer along one symbolic axis.

    Raises OptionError for a pair that is none where `strict`.
    """
    given = {spec.name: spec for spec in inputs}
    results = {spec.name: spec for spec in outputs}
    states = []
    for name, output in pairs.items():
        if name not in given or output not in results:  # fixed when compiling, or not asked for
            continue
        state = _state(given[name], results[output])
        if state is not None:
            states.append(state)
        elif strict:
            raise OptionError(
                f"{given[name]} and {results[output]} are not a state: they differ in more than one symbolic axis",
                "give their sizes in shapes=",
            )
    return tuple(states)


def _state(given: TensorSpec, result: TensorSpec) -> StateSpec | None:
    if given.dtype != result.dtype or len(given.shape) != len(result.shape):
        return None
    different = [axis for axis, (a, b) in enumerate(zip(given.shape, result.shape, strict=True)) if a != b]
    if not different:
        return StateSpec(given.name, given.name, result.name)
    if len(different) > 1 or not isinstance(given.shape[different[0]], str):
        return None
    return StateSpec(given.name, given.name, result.name, axis=different[0], grows=True)
