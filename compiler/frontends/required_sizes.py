"""Symbolic dimensions of states that a model requires to be one number: declared as names, as in some exports, they are
that number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from tvm.ir import IRModule

from compiler.frontends.imported_model import ImportedModel, IndexRequirement, SizeRequirement, TensorSpec
from compiler.passes.rewriting.size_variants import symbolic_dimensions
from compiler.support.formula import parsed, with_names

_ENTRY = "main"


def with_required_sizes(model: ImportedModel, inputs: Collection[str]) -> ImportedModel:
    """The model where those dimensions of some inputs are numbers that it cannot run without."""
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


def _required(requirements: Collection[SizeRequirement]) -> Iterator[tuple[str, int]]:
    """Dimensions that must equal a number, and the number."""
    for each in requirements:
        if each.relation == "equal":
            for one, other in ((each.left, each.right), (each.right, each.left)):
                if one in each.symbols and other.isdecimal():
                    yield each.symbols[one], int(other)


def _described(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    return replace(spec, shape=tuple(_number(_filled(size, sizes)) for size in spec.shape))


def _filled(formula: int | str, sizes: Mapping[str, int]) -> int | str:
    """A size with numbers for the names that have one."""
    if isinstance(formula, int):
        return formula
    return with_names(formula, lambda name: str(sizes.get(name, name)))


def _number(size: int | str) -> int | str:
    return size if isinstance(size, int) or parsed(size).names else parsed(size).value({})


def _own(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, int]:
    """The numbers by the names that a formula has for the dimensions."""
    return {name: sizes[dimension] for name, dimension in symbols.items() if dimension in sizes}


def _left(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, str]:
    return {name: dimension for name, dimension in symbols.items() if dimension not in sizes}


def _is_met(requirement: SizeRequirement, sizes: Mapping[str, int]) -> bool:
    """True if it is what a size is known from."""
    return all(dimension in sizes for dimension in requirement.symbols.values()) and bool(
        list(_required([requirement]))
    )


def _sized(requirement: SizeRequirement, sizes: Mapping[str, int]) -> SizeRequirement:
    own = _own(requirement.symbols, sizes)
    left, right = (str(_filled(each, own)) for each in (requirement.left, requirement.right))
    return replace(requirement, left=left, right=right, symbols=_left(requirement.symbols, sizes))


def _sized_index(index: IndexRequirement, sizes: Mapping[str, int]) -> IndexRequirement:
    own = _own(index.symbols, sizes)
    least = None if index.least is None else str(_filled(index.least, own))
    return replace(index, size=str(_filled(index.size, own)), least=least, symbols=_left(index.symbols, sizes))
