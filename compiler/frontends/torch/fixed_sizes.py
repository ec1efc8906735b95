"""Conditions on dynamic sizes that were added by decomposing operators, or overlooked by `torch.export`.

`torch.export` rejects models that fix a size, unless the size is a multiple of a dimension (`32 * Dim("h")`). Later
tracing, to decompose operators, silently adds conditions on sizes, and its results are only correct for sizes that meet
them.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.branches import Condition, decomposition_relations, equation_on_a_size
from compiler.frontends.torch.dynamic_shapes import dimension_names, remaining_dimensions

if TYPE_CHECKING:
    import torch


_NEIGHBOURS = 256  # sizes tested on either side of the example's


class OpenSizes:
    """The dynamic sizes of a program's inputs, and the conditions on them in the original program. `parameters`: the
    parameters of the model's `forward`; empty for a program exported by the caller."""

    def __init__(
        self, program: torch.export.ExportedProgram, parameters: Mapping[str, inspect.Parameter], dynamic_shapes: Any
    ) -> None:
        self._parameters, self._shapes = parameters, dynamic_shapes
        self._positions: dict[Any, list[tuple[str, str]]] = {}
        self._environment: Any = None
        for node, argument in zip(_input_nodes(program), _arguments(program, list(parameters.values())), strict=True):
            value = node.meta.get("val")
            mode = getattr(value, "fake_mode", None)
            if mode is None or mode.shape_env is None:
                continue
            self._environment = mode.shape_env
            for axis, size in enumerate(value.shape):
                expr = getattr(getattr(size, "node", None), "expr", None)
                for symbol in getattr(expr, "free_symbols", ()):  # also for 32*s
                    names = (f"dimension {axis} of {node.name}", f"{argument}.size()[{axis}]")
                    self._positions.setdefault(symbol, []).append(names)
        self._known = 0 if self._environment is None else len(self._environment.guards)

    def names(self) -> dict[str, str]:
        """Names of `Dim`s by their symbols."""
        dimensions = dimension_names(self._shapes, list(self._parameters))
        return {
            str(symbol): dimensions[path]
            for symbol, positions in self._positions.items()
            for _, path in positions
            if path in dimensions
        }

    def added(self) -> list[Condition]:
        """Return the conditions added since that results depend on, and the equations on one size. Raises
        UnsupportedModelError if one of them fixes a size."""
        guards = () if self._environment is None else self._environment.guards[self._known :]
        fixed, conditions = self._fixed_by_the_model(), []
        for guard in guards:
            relations = list(decomposition_relations(guard))
            if getattr(guard.expr, "rel_op", None) == "==" and not _is_multiple(guard.expr):
                symbols = [symbol for symbol in self._positions if symbol in guard.expr.free_symbols]
                if len(symbols) == 1:
                    relations = relations or equation_on_a_size(guard)
                    if not relations or not self._holds_at_twice_the_size(guard.expr, *symbols):
                        fixed.setdefault(symbols[0], guard.expr)
            conditions += relations
        if fixed:
            raise self._refusal(fixed)
        return conditions

    def _fixed_by_the_model(self) -> dict[Any, Any]:
        """Map each symbol, of which a size is a multiple, to the equation that fixes it."""
        fixed: dict[Any, Any] = {}
        for guard in () if self._environment is None else self._environment.guards[: self._known]:
            if getattr(guard.expr, "rel_op", None) == "==":
                equation = guard.expr.xreplace(self._environment.replacements)
                free = getattr(equation, "free_symbols", ())
                symbols = [each for each in self._positions if each in free]
                if symbols and len(symbols) == len(free) and self._fixes(equation, symbols):
                    fixed.update({each: equation for each in symbols if each not in fixed})
        return fixed

    def _fixes(self, equation: Any, symbols: list[Any]) -> bool:
        """True if the equation fixes each of its symbols when the others have the example's values, as `height // 16 *
        (width // 16) == 196` does if one side is a number; otherwise it relates several symbols."""
        if len(symbols) > 1 and not any(side.is_number and side != 0 for side in (equation.lhs, equation.rhs)):
            return False
        examples = _examples(self._environment)
        return all(
            self._is_fixed(equation.subs({other: examples.get(other, 0) for other in symbols if other != each}), each)
            for each in symbols
        )

    def _is_fixed(self, equation: Any, symbol: Any) -> bool:
        """True if the sizes near the example's that solve the equation form a single block, like 64 to 79 for `size //
        16 == 4`: the model computes one thing for all of them, and something else or nothing for others."""
        example = int(_examples(self._environment).get(symbol, 0))
        near = range(max(example - _NEIGHBOURS, 1), example + _NEIGHBOURS)
        if example not in near:
            return False
        first = _end_of_block(equation, symbol, range(example, near.start - 1, -1))
        last = _end_of_block(equation, symbol, range(example, near.stop))
        if first == near.start > 1 or last == near.stop - 1 or last - first >= example:  # a range of sizes
            return False
        others = (each for each in near if not first <= each <= last)
        return not any(_may_hold(equation, symbol, each) for each in others)

    def _holds_at_twice_the_size(self, equation: Any, symbol: Any) -> bool:
        """True for equations like that of a network that halves sizes, rounding up, and doubles them again."""
        twice = 2 * int(_examples(self._environment).get(symbol, 0))
        solved = (size for size in range(twice, twice + _NEIGHBOURS) if _may_hold(equation, symbol, size))
        return twice > 0 and equation.free_symbols == {symbol} and next(solved, None) is not None

    def _refusal(self, fixed: Mapping[Any, Any]) -> UnsupportedModelError:
        refusals = [
            Refusal(
                "dynamic size",
                name,
                f"an operator of the model is written for sizes where {equation.lhs} = {equation.rhs}",
            )
            for symbol, equation in fixed.items()
            for name, _ in self._positions[symbol]
        ]
        gone = {name for symbol in fixed for _, name in self._positions[symbol]}
        line = remaining_dimensions(self._shapes, list(self._parameters), lambda name, dim: name in gone)
        hint = "give an example of a size that takes another branch, or leave these dimensions out of dynamic_shapes"
        return UnsupportedModelError(refusals, f"{hint}: {line}" if line else hint)


def _examples(environment: Any) -> Any:
    """Return the example's value of each symbol."""
    return getattr(environment, "backed_var_to_val", None) or environment.var_to_val


def _end_of_block(equation: Any, symbol: Any, sizes: range) -> int:
    """Return the last of the sizes before the first one that violates the equation."""
    holds = itertools.takewhile(lambda size: _may_hold(equation, symbol, size), sizes[1:])
    return max(holds, key=lambda size: abs(size - sizes[0]), default=sizes[0])


def _may_hold(equation: Any, symbol: Any, size: int) -> bool:
    """True unless the equation is false for this size, or divides by zero."""
    try:
        return str(equation.subs(symbol, size)) != "False"  # a relation may remain undecided
    except ZeroDivisionError:
        return False


def _is_multiple(equation: Any) -> bool:
    """True for Mod(size, 4) = 0."""
    return type(equation.lhs).__name__ == "Mod" and equation.rhs == 0


def _input_nodes(program: torch.export.ExportedProgram) -> list[Any]:
    from torch.export.graph_signature import InputKind

    specs = program.graph_signature.input_specs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [node for node, spec in zip(nodes, specs, strict=True) if spec.kind == InputKind.USER_INPUT]


def _arguments(program: torch.export.ExportedProgram, parameters: list[inspect.Parameter]) -> Iterator[str]:
    """Yield the argument of `forward` that each input is, or is part of, as torch writes it: "L['x'][0]"."""
    from torch.utils import _pytree

    spec = program.call_spec.in_spec
    leaves, _ = _pytree.tree_flatten_with_path(_pytree.tree_unflatten(range(spec.num_leaves), spec))
    for path, _ in leaves:
        yield _argument(path, parameters)


def _argument(path: tuple[Any, ...], parameters: list[inspect.Parameter]) -> str:
    """Return the argument at a path of keys into the pair of positional and keyword arguments."""
    kind, first, *rest = path
    within = "".join(map(str, rest))
    if kind.idx == 1:
        return f"L[{first.key!r}]{within}"
    index: int = first.idx
    if index < len(parameters) and parameters[index].kind is not inspect.Parameter.VAR_POSITIONAL:
        return f"L[{parameters[index].name!r}]{within}"
    name, before = (parameters[-1].name, len(parameters) - 1) if parameters else ("args", 0)
    return f"L[{name!r}][{index - before}]{within}"
