"""Finds the frontend for a model.

In a Relax IRModule, `main` is the model, and its parameter names are the input names.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from typing_extensions import Unpack

from compiler.errors import InputError, InternalError, InvalidModelError, OptionError, TensorwrightError, type_text
from compiler.frontends.imported_model import ImportedModel, TensorSpec, selected_outputs
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.hugging_face import is_language_model
from compiler.frontends.onnx import import_onnx
from compiler.frontends.state_capacity import with_capacity
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from compiler.support.compilation import one_at_a_time
from compiler.support.model_files import check_exists, check_folder
from compiler.support.model_nodes import ModelNode
from compiler.support.options import Constants, ImportArguments, Shapes, State, takes_imports

SOURCES = (
    "a path to an .onnx, .pt2 or .gguf file, or to a transformers folder of a language model, an onnx.ModelProto or "
    "its bytes, a torch.nn.Module with example_inputs, a torch.export.ExportedProgram, a Relax IRModule, or what "
    "quantize or another technique returned"
)

_LONGEST_REASON = 300  # characters


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The options of `import_model`, for functions that pass them on."""

    shapes: Shapes | None = None
    constants: Constants | None = None
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None
    dynamic_shapes: Any = None
    outputs: Sequence[str] | None = None
    state: State = None
    capacity: int | str | None = None
    language: LanguageModelOptions | None = None

    @classmethod
    def of(cls, arguments: ImportArguments) -> ImportOptions:
        """Return the options from keyword arguments. Raises TypeError for unknown ones, like Python."""
        known = [each.name for each in fields(cls)]
        for name in arguments:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"got an unexpected keyword argument {name!r}{hint}")
        return cls(**arguments)

    def given(self) -> dict[str, Any]:
        """Return the options that are not None, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @one_at_a_time
    def load(self, source: object) -> ImportedModel:
        """Call `import_model` with these options."""
        _check_forms(self.shapes, self.constants)
        try:
            model = _imported(source, replace(self, capacity=None))
        except (TensorwrightError, MemoryError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:_LONGEST_REASON]}"
            raise InternalError(f"importing the model failed in {_place_of(error)}: {reason}") from error
        return model if self.capacity is None else with_capacity(model, self.capacity)


@takes_imports
def import_model(source: object, **imports: Unpack[ImportArguments]) -> ImportedModel:
    """Import a model from any supported source.

    Args:
        source: one of `SOURCES`.
        shapes: sizes of inputs by name; an int fixes a dimension, a string makes it symbolic, and equal strings mean
            equal sizes.
        constants: values of inputs to fix at compile time; the module does not have these inputs.
        example_inputs: positional arguments of a `torch.nn.Module`, or a dictionary of keyword arguments.
        dynamic_shapes: see `torch.export.export`, for a `torch.nn.Module`.
        outputs: names of the outputs to return, in this order; None returns all.
        state, capacity: as in `compile`.

    Raises:
        InvalidModelError, UnsupportedModelError, InputValueRequiredError, InputError, OptionError, StorageError.
    """
    return ImportOptions.of(imports).load(source)


def _place_of(error: Exception) -> str:
    """Return the innermost function of this package in an error's traceback: "frontends/torch/states.py,
    with_states"."""
    root = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((each for each in reversed(frames) if Path(each.filename).is_relative_to(root)), frames[-1])
    path = Path(frame.filename)
    return f"{path.relative_to(root) if path.is_relative_to(root) else path.name}, {frame.name}"


def _imported(source: object, options: ImportOptions) -> ImportedModel:
    if _is_torch_model(source):
        from compiler.frontends.torch import import_torch

        return import_torch(
            source,
            shapes=options.shapes,
            constants=options.constants,
            example_inputs=options.example_inputs,
            dynamic_shapes=options.dynamic_shapes,
            outputs=options.outputs,
            state=_names_or_pairs(options.state),
        )
    if isinstance(source, ImportedModel):
        _check_no_import_options(options)
        # Drop the fields that a technique added, so that the next one can add its own.
        return ImportedModel(**{each.name: getattr(source, each.name) for each in fields(ImportedModel)})
    if isinstance(source, str | Path):
        _only_for_torch_modules(options)
        return _import_file(Path(source), options)
    if isinstance(source, onnx.ModelProto | bytes):
        _only_for_torch_modules(options)
        return _import_onnx(source, options)
    if isinstance(source, tvm.IRModule):
        _only_for_torch_modules(options)
        if options.state:
            raise OptionError("state= does not apply to a Relax module", "give an ImportedModel with its states")
        return import_relax(source, shapes=options.shapes, constants=options.constants, outputs=options.outputs)
    raise OptionError(f"{type_text(source)} is not a model", _hint_on(source))


def _hint_on(source: object) -> str:
    if isinstance(source, type):
        return f"give an instance: {source.__name__}(...)"
    if isinstance(source, Mapping) and source and all(hasattr(each, "dtype") for each in source.values()):
        return "these are only weights: load them into the model (model.load_state_dict), and give that"
    if hasattr(source, "manifest"):
        return "it is already compiled: call its run()"
    return f"give {SOURCES}"


def _check_forms(shapes: Shapes | None, constants: Constants | None) -> None:
    """Raise OptionError unless both are dictionaries, and InputError unless each shape is a sequence of sizes."""
    for option, value in (("shapes", shapes), ("constants", constants)):
        if value is not None and not isinstance(value, Mapping):
            raise OptionError(f"{option}= must be a dict by input name, not {type_text(value)}")
    for name, sizes in (shapes or {}).items():
        if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
            raise InputError(
                f"shapes: {sizes!r} is not a shape of input {name!r}",
                f'give its sizes, as in shapes={{{name!r}: ("batch", 64)}}',
            )


def _pairs(state: State) -> Mapping[str, str] | None:
    """Return the option for an ONNX model. Raises OptionError unless it is a dictionary of names."""
    if state is not None and not isinstance(state, Mapping):
        raise OptionError('state= of an ONNX model pairs inputs with outputs: {"past_key_values.*": "present.*"}')
    return state


def _names_or_pairs(state: State) -> State:
    """Return the option for a PyTorch model. Raises OptionError for a single string."""
    if isinstance(state, str):
        raise OptionError('state= of a PyTorch model names inputs that it writes to, as in ["key_cache"], or pairs')
    return state


def _import_file(path: Path, options: ImportOptions) -> ImportedModel:
    if is_language_model(path):
        if options.shapes or options.constants or options.outputs or options.state:
            raise OptionError("shapes, constants, outputs and state do not apply to a language model")
        return import_language_model(path, options.language)
    check_exists(path)
    if path.is_dir():
        check_folder(path)
    if path.suffix == ".pt2":
        from compiler.frontends.torch import import_torch_file

        return import_torch_file(
            path,
            shapes=options.shapes,
            constants=options.constants,
            outputs=options.outputs,
            state=_names_or_pairs(options.state),
        )
    if path.suffix == ".twm":
        raise InvalidModelError(f"{path} is already compiled", "run it with tensorwright.load(path).run(...)")
    return _import_onnx(path, options)


def _import_onnx(source: Path | onnx.ModelProto | bytes, options: ImportOptions) -> ImportedModel:
    return import_onnx(
        source, shapes=options.shapes, constants=options.constants, outputs=options.outputs, state=_pairs(options.state)
    )


def _only_for_torch_modules(options: ImportOptions) -> None:
    if options.example_inputs is not None or options.dynamic_shapes is not None:
        raise OptionError(
            "example_inputs and dynamic_shapes are for torch.nn.Module sources", "give the sizes of inputs in shapes="
        )


def _check_no_import_options(options: ImportOptions) -> None:
    if any(value for name, value in options.given().items() if name != "language"):
        raise OptionError(
            "shapes, constants, example_inputs, dynamic_shapes, outputs and state do not apply to an imported model",
            "give them to the call that imported it",
        )


def _is_torch_model(source: object) -> bool:
    # Only a program that has torch loaded can hold a torch object.
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(source, torch.nn.Module | torch.export.ExportedProgram)


def import_relax(
    mod: tvm.IRModule,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] | None = None,
) -> ImportedModel:
    """Import a Relax module: inputs are the parameters of `main`, outputs are named output_0, output_1, ...

    Args:
        constants: values of parameters, by name, to turn into constants (usually a model's weights).
        outputs: names of the outputs to return, in this order; None returns all.

    Raises:
        InvalidModelError: no `main`, an ill-formed module, or a parameter or result that is not a tensor.
        OptionError: `shapes` is given, which only importers can apply, or `outputs` has an unknown name.
    """
    if shapes:
        raise OptionError("shapes= does not apply to a Relax module", "its own types give the sizes")
    if "main" not in {variable.name_hint for variable in mod.get_global_vars()}:
        raise InvalidModelError("the Relax module has no function 'main'")
    try:
        relax.analysis.well_formed(mod)
    except Exception as error:
        raise InvalidModelError(f"the Relax module is not well formed: {error}") from error
    fixed = dict(constants or {})
    mod = _bind(mod, fixed)
    main = mod["main"]
    inputs = [_tensor_spec(parameter.name, parameter.ty) for parameter in main.params]
    mod = _return_tuple(mod)
    names = [f"output_{index}" for index in range(len(mod["main"].body.ty.fields))]
    selected = selected_outputs(outputs, names)
    if selected != names:
        mod = _return_fields(mod, [names.index(name) for name in selected])
    specs = [_tensor_spec(name, field) for name, field in zip(selected, mod["main"].body.ty.fields, strict=True)]
    return ImportedModel(mod=mod, inputs=inputs, outputs=specs, fixed=fixed, nodes=_nodes(mod))


def _nodes(mod: tvm.IRModule) -> dict[str, tuple[ModelNode, ...]]:
    """Return the variables that calls are bound to, as nodes."""
    return {
        str(binding.var.name): (ModelNode(str(binding.var.name), operator_name(binding.value) or "call"),)
        for _, function in rewritable_functions(mod)
        for binding in bindings_of(function.body)
        if isinstance(binding.value, relax.Call)
    }


def _bind(mod: tvm.IRModule, fixed: dict[str, np.ndarray]) -> tvm.IRModule:
    names = {parameter.name for parameter in mod["main"].params}
    unknown = sorted(set(fixed) - names)
    if unknown:
        raise OptionError(f"constants= names no parameter of main: {', '.join(unknown)}", f"it has {sorted(names)}")
    return relax.transform.BindParams("main", fixed)(mod) if fixed else mod


def _return_tuple(mod: tvm.IRModule) -> tvm.IRModule:
    """Make `main` return a flat tuple, even for a single result."""
    main = mod["main"]
    if isinstance(main.body.ty, relax.TupleType):
        return mod
    body = main.body
    result = relax.Tuple([body.body])
    returned = relax.TupleType([body.ty])
    wrapped = relax.Function(main.params, relax.SeqExpr(body.blocks, result), returned, main.is_pure, main.attrs)
    mod = mod.clone()  # do not modify the caller's
    mod["main"] = wrapped
    return relax.transform.Normalize()(mod)


def _return_fields(mod: tvm.IRModule, fields: Sequence[int]) -> tvm.IRModule:
    """Make `main` return and compute only these fields of its tuple."""
    main = mod["main"]
    body = main.body
    result = relax.Tuple([relax.TupleGetItem(body.body, field) for field in fields])
    returned = relax.TupleType([body.ty.fields[field] for field in fields])
    chosen = relax.Function(main.params, relax.SeqExpr(body.blocks, result), returned, main.is_pure, main.attrs)
    mod = mod.clone()  # do not modify the caller's
    mod["main"] = chosen
    passes = relax.transform
    steps = [passes.Normalize(), passes.CanonicalizeBindings(), passes.DeadCodeElimination(["main"])]
    return tvm.transform.Sequential(steps)(mod)


def _tensor_spec(name: str, annotation: relax.Type) -> TensorSpec:
    if not isinstance(annotation, relax.TensorType) or annotation.shape is None:
        raise InvalidModelError(f"{name!r} of 'main' is {annotation}, not a tensor of known rank")
    shape = tuple(
        int(dimension) if isinstance(dimension, tvm.tirx.IntImm) else str(dimension) for dimension in annotation.shape
    )
    return TensorSpec(name=name, shape=shape, dtype=str(annotation.dtype))
