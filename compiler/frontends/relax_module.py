"""A Relax IRModule as a model: its `main` function, with parameter names as input names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, TensorSpec


def import_relax(
    mod: tvm.IRModule,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> ImportedModel:
    """Import a Relax module: parameters of `main` are the inputs, outputs are named output_0, output_1, ...

    Args:
        constants: values of parameters, by name, that become constants (the weights of a model, usually).

    Raises:
        InvalidModelError: no `main`, an ill-formed module, or a parameter or result that is not a tensor.
        OptionError: `shapes` is given, which only an importer can apply.
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
    fields = mod["main"].body.ty.fields
    outputs = [_tensor_spec(f"output_{index}", field) for index, field in enumerate(fields)]
    return ImportedModel(mod=mod, inputs=inputs, outputs=outputs, fixed=fixed)


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


def _tensor_spec(name: str, annotation: relax.Type) -> TensorSpec:
    if not isinstance(annotation, relax.TensorType) or annotation.shape is None:
        raise InvalidModelError(f"{name!r} of 'main' is {annotation}, not a tensor of known rank")
    shape = tuple(
        int(dimension) if isinstance(dimension, tvm.tirx.IntImm) else str(dimension) for dimension in annotation.shape
    )
    return TensorSpec(name=name, shape=shape, dtype=str(annotation.dtype))
