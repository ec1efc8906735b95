"""Finds the frontend for a model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm

from compiler.errors import InputError, InvalidModelError, OptionError, type_text
from compiler.frontends.file_types import check_exists, check_folder, is_language_model
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.onnx import import_onnx
from compiler.frontends.relax_module import import_relax
from compiler.frontends.state_capacity import with_capacity
from compiler.support.compile_lock import one_at_a_time

Dimension = int | str
Shapes = Mapping[str, Sequence[Dimension]]
Constants = Mapping[str, np.ndarray]
State = Mapping[str, str] | Sequence[str] | None

SOURCES = (
    "a path to an .onnx, .pt2 or .gguf file, or to a transformers folder of a language model, an onnx.ModelProto or "
    "its bytes, a torch.nn.Module with example_inputs, a torch.export.ExportedProgram, a Relax IRModule, or what "
    "quantize or another technique returned"
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The options of `import_model`, for functions that hand them on."""

    shapes: Shapes | None = None
    constants: Constants | None = None
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None
    dynamic_shapes: Any = None
    outputs: Sequence[str] | None = None
    state: State = None
    capacity: int | str | None = None
    language: LanguageModelOptions | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def load(self, source: object) -> ImportedModel:
        """`import_model` with these options."""
        return import_model(source, **self.given())


@one_at_a_time
def import_model(
    source: object,
    *,
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    outputs: Sequence[str] | None = None,
    state: State = None,
    capacity: int | str | None = None,
    language: LanguageModelOptions | None = None,
) -> ImportedModel:
    """Import a model of any supported source.

    Args:
        source: one of `SOURCES`.
        shapes: sizes of inputs by name; an int fixes a dimension, a string makes it symbolic, and equal strings are
            equal sizes.
        constants: values of inputs that are fixed when compiling; those inputs disappear from the module.
        example_inputs: positional arguments of a `torch.nn.Module`, or a dictionary of keyword arguments.
        dynamic_shapes: as of `torch.export.export`, for a `torch.nn.Module`.
        outputs: names of those to return, in this order; all when None.
        state, capacity: as `compile` takes them.
        language: how a language model is built; None for the defaults.

    Raises:
        InvalidModelError, UnsupportedModelError, InputValueRequiredError, InputError, OptionError, StorageError.
    """
    _check_forms(shapes, constants)
    if capacity is not None:
        options = ImportOptions(
            shapes=shapes,
            constants=constants,
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            outputs=outputs,
            state=state,
            language=language,
        )
        return with_capacity(options.load(source), capacity)
    if isinstance(source, str | Path):
        _only_for_torch_modules(example_inputs, dynamic_shapes)
        if is_language_model(Path(source)):
            if shapes or constants or outputs or state:
                raise OptionError("shapes, constants, outputs and state do not apply to a language model")
            return import_language_model(Path(source), language)
        return _import_file(Path(source), shapes, constants, outputs, state)
    if isinstance(source, onnx.ModelProto | bytes):
        _only_for_torch_modules(example_inputs, dynamic_shapes)
        return import_onnx(source, shapes=shapes, constants=constants, outputs=outputs, state=_pairs(state))
    if isinstance(source, ImportedModel):
        _check_no_import_options(shapes, constants, example_inputs, dynamic_shapes, outputs, state)
        # Without what a technique added, so that the next one can add its own.
        return ImportedModel(**{each.name: getattr(source, each.name) for each in fields(ImportedModel)})
    if isinstance(source, tvm.IRModule):
        _only_for_torch_modules(example_inputs, dynamic_shapes)
        if state:
            raise OptionError("state= does not apply to a Relax module", "give an ImportedModel with its states")
        return import_relax(source, shapes=shapes, constants=constants, outputs=outputs)
    if _is_torch_model(source):
        from compiler.frontends.torch import import_torch

        return import_torch(
            source,
            shapes=shapes,
            constants=constants,
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            outputs=outputs,
            state=_names_or_pairs(state),
        )
    raise OptionError(f"{type_text(source)} is not a model", _hint_on(source))


def _hint_on(source: object) -> str:
    if isinstance(source, type):
        return f"give an instance: {source.__name__}(...)"
    if isinstance(source, Mapping) and source and all(hasattr(each, "dtype") for each in source.values()):
        return "these are weights alone: load them into the model (model.load_state_dict), and give that"
    if hasattr(source, "manifest"):
        return "it is compiled already: call its run()"
    return f"give {SOURCES}"


def _check_forms(shapes: Shapes | None, constants: Constants | None) -> None:
    """Raise OptionError unless both are dictionaries, and InputError unless each shape is a sequence of sizes."""
    for option, given in (("shapes", shapes), ("constants", constants)):
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(f"{option}= takes a dict by input name, not {type_text(given)}")
    for name, sizes in (shapes or {}).items():
        if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
            raise InputError(
                f"shapes: {sizes!r} is not a shape of input {name!r}",
                f'give its sizes, as in shapes={{{name!r}: ("batch", 64)}}',
            )


def _pairs(state: State) -> Mapping[str, str] | None:
    """The option for an ONNX model. Raises OptionError for what is not a dictionary of names."""
    if state is not None and not isinstance(state, Mapping):
        raise OptionError('state= of an ONNX model pairs inputs with outputs: {"past_key_values.*": "present.*"}')
    return state


def _names_or_pairs(state: State) -> State:
    """The option for a PyTorch model. Raises OptionError for a lone name."""
    if isinstance(state, str):
        raise OptionError('state= of a PyTorch model names inputs that it writes to, as in ["key_cache"], or pairs')
    return state


def _import_file(
    path: Path, shapes: Shapes | None, constants: Constants | None, outputs: Sequence[str] | None, state: State
) -> ImportedModel:
    check_exists(path)
    if path.is_dir():
        check_folder(path)
    if path.suffix == ".pt2":
        from compiler.frontends.torch import import_torch_file

        return import_torch_file(
            path, shapes=shapes, constants=constants, outputs=outputs, state=_names_or_pairs(state)
        )
    if path.suffix == ".twm":
        raise InvalidModelError(f"{path} is compiled already", "run it with tensorwright.load(path).run(...)")
    return import_onnx(path, shapes=shapes, constants=constants, outputs=outputs, state=_pairs(state))


def _only_for_torch_modules(example_inputs: object, dynamic_shapes: object) -> None:
    if example_inputs is not None or dynamic_shapes is not None:
        raise OptionError(
            "example_inputs and dynamic_shapes are for torch.nn.Module sources",
            "give the sizes of inputs in shapes=",
        )


def _check_no_import_options(*options: object) -> None:
    if any(options):
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
