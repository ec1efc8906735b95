"""A Relax IRModule as a model: its `main` function, with parameter names as input names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, TensorSpec, selected_outputs
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from compiler.support.model_nodes import ModelNode


def import_relax(
    mod: tvm.IRModule,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] | None = None,
) -> ImportedModel:
    """Import a Relax module: parameters of `main` are the inputs, outputs are named output_0, output_1, ...

    Args:
        constants: values of parameters, by name, that become constants (the weights of a model, usually).
        outputs: names of those to return, in this order; all when None.

    Raises:
        InvalidModelError: no `main`, an ill-formed module, or a parameter or result that is not a tensor.
        OptionError: `shapes` is given, which only an importer can apply, or `outputs` has a name that is none.
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
    wanted = selected_outputs(outputs, names)
    if wanted != names:
        mod = _return_fields(mod, [names.index(name) for name in wanted])
    specs = [_tensor_spec(name, field) for name, field in zip(wanted, mod["main"].body.ty.fields, strict=True)]
    return ImportedModel(mod=mod, inputs=inputs, outputs=specs, fixed=fixed, nodes=_nodes(mod))


def _nodes(mod: tvm.IRModule) -> dict[str, tuple[ModelNode, ...]]:
    """The variables that calls are bound to, as nodes."""
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
    """`main` returns a flat tuple, with one result too."""
    main = mod["main"]
    if isinstance(main.body.ty, relax.TupleType):
        return mod
    body = main.body
    result = relax.Tuple([body.body])
    returned = relax.TupleType([body.ty])
    wrapped = relax.Function(main.params, relax.SeqExpr(body.blocks, result), returned, main.is_pure, main.attrs)
    mod = mod.clone()  # the caller's stays as it is
    mod["main"] = wrapped
    return relax.transform.Normalize()(mod)


def _return_fields(mod: tvm.IRModule, fields: Sequence[int]) -> tvm.IRModule:
    """`main` returns these fields of its tuple, and computes nothing else."""
    main = mod["main"]
    body = main.body
    result = relax.Tuple([relax.TupleGetItem(body.body, field) for field in fields])
    returned = relax.TupleType([body.ty.fields[field] for field in fields])
    chosen = relax.Function(main.params, relax.SeqExpr(body.blocks, result), returned, main.is_pure, main.attrs)
    mod = mod.clone()  # the caller's stays as it is
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
