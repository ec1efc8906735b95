"""Captures a `torch.nn.Module` with example inputs as an `ExportedProgram`."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import InputError, OptionError, TensorwrightError
from compiler.frontends.torch.buffers import integers_as_constants, refuse_writes_to_constants
from compiler.frontends.torch.caches import register_caches
from compiler.frontends.torch.capture_errors import capture_error, line_of_the_model
from compiler.frontends.torch.composite_functions import composites_captured
from compiler.frontends.torch.constants import (
    MAX_ELEMENTS,
    constants_propagated,
    created_as_constants,
    propagated_elements,
)
from compiler.frontends.torch.dynamic_shapes import fixed_by, remaining_dimensions
from compiler.frontends.torch.exporter_patches import patched_exporter
from compiler.frontends.torch.number_types import number_types_captured
from compiler.frontends.torch.recurrent_layers import recurrent_layers_captured
from compiler.frontends.torch.results import named_results
from compiler.frontends.torch.sized_functions import sized_functions_captured
from compiler.frontends.torch.transformers_functions import transformers_functions_captured

if TYPE_CHECKING:
    import torch


def exported_program(
    source: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> torch.export.ExportedProgram:
    """Export a module with `torch.export`; a program is returned unchanged. Raises like `import_torch`."""
    import torch
    from torch.export import ExportedProgram

    if isinstance(source, ExportedProgram):
        if example_inputs is not None or dynamic_shapes is not None:
            raise OptionError(
                "an ExportedProgram already has its inputs; example_inputs and dynamic_shapes do not apply"
            )
        return source
    if isinstance(source, torch.jit.ScriptModule):
        raise OptionError(
            "the model is a TorchScript program, which torch.export does not accept",
            "give the torch.nn.Module that it was made of",
        )
    if example_inputs is None:
        raise OptionError(
            "a torch.nn.Module needs example_inputs",
            "compile(model, example_inputs=(torch.randn(1, 3, 224, 224),))",
        )
    if any(module.training for module in source.modules()):
        raise OptionError("the torch.nn.Module is in training mode", "call model.eval() first")
    arguments, named = _arguments(example_inputs)
    register_caches([*arguments, *named.values()])
    arguments, named = _told_apart(arguments, named)
    try:
        return _captured(source, arguments, named, dynamic_shapes)
    except TensorwrightError:
        raise
    except Exception as error:  # torch.export raises many classes, none of them public
        if isinstance(error, TypeError | AssertionError) and not line_of_the_model(error.__traceback__):
            raise InputError(f"the example inputs do not fit the model: {error}") from error
        names = list(inspect.signature(source.forward).parameters)
        remaining = remaining_dimensions(dynamic_shapes, names, fixed_by(str(error)))
        raise capture_error(error, [*arguments, *named.values()], remaining) from error


def _captured(
    model: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Return the program; a second capture makes small integer tensors constants if sizes are computed from them."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        return _with_constants(model, arguments, named, dynamic_shapes)
    except GuardOnDataDependentSymNode:
        with integers_as_constants(model), created_as_constants():
            program = _with_constants(model, arguments, named, dynamic_shapes)
        refuse_writes_to_constants(program)
        return program


def _with_constants(
    model: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Return the program, captured again without propagating the values of constants that the model writes to."""
    with constants_propagated(MAX_ELEMENTS):
        program = _exported(model, arguments, named, dynamic_shapes)
    elements = propagated_elements(program)
    if elements == MAX_ELEMENTS:
        return program
    with constants_propagated(elements):
        return _exported(model, arguments, named, dynamic_shapes)


def _exported(
    model: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Return the program; fall back to the builtin number types if the model fails with those that accept symbolic
    sizes."""
    import torch
    from torch._dynamo.exc import UserError

    with quiet(), torch.no_grad(), patched_exporter(), named_results(model), _replaced_functions():
        if dynamic_shapes is not None:
            with number_types_captured(model) as replaced:
                try:
                    return torch.export.export(model, arguments, named, dynamic_shapes=dynamic_shapes, strict=False)
                except UserError:  # a size is fixed, as it would be with the builtin types
                    raise
                except Exception:  # torch.export raises many classes, none of them public
                    if not replaced:
                        raise
        return torch.export.export(model, arguments, named, dynamic_shapes=dynamic_shapes, strict=False)


@contextlib.contextmanager
def _replaced_functions() -> Iterator[None]:
    """Context in which functions that torch captures only at a fixed size are replaced by dynamic ones."""
    with (
        transformers_functions_captured(),
        recurrent_layers_captured(),
        composites_captured(),
        sized_functions_captured(),
    ):
        yield


def _arguments(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the model's positional and keyword arguments."""
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        named = dict(example_inputs)
    else:
        arguments = tuple(example_inputs) if isinstance(example_inputs, Sequence) else (example_inputs,)
    for name, value in [*enumerate(arguments), *named.items()]:
        if isinstance(value, np.ndarray):
            raise InputError(f"example_inputs[{name!r}] is a numpy array", "give tensors: torch.from_numpy(array)")
    return arguments, named


def _told_apart(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy inputs passed more than once, which `torch.export` would treat as one input."""
    import torch
    from torch.utils import _pytree

    tensors = [each for each in _pytree.tree_leaves((arguments, named)) if isinstance(each, torch.Tensor)]
    if len({id(each) for each in tensors}) == len(tensors):
        return arguments, named
    seen: set[int] = set()

    def once(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return leaf.clone()

    copied: tuple[tuple[Any, ...], dict[str, Any]] = _pytree.tree_map(once, (arguments, named))
    return copied


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' progress output, dumps of failing graphs and deprecation warnings; failures still
    raise."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
