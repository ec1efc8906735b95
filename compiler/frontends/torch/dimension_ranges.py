"""Constraints of a PyTorch program on each dynamic dimension: its range, and a number that it must be a multiple of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.size_relations import SizeRelation
from schedules.ir.size_proofs import Congruence

if TYPE_CHECKING:
    import torch

_ARTIFICIAL_LEAST = 2
"""torch.export takes dynamic sizes for 2 or more while it traces, and its programs run with smaller ones."""


@dataclass(frozen=True)
class Dimension:
    """A dynamic dimension of an input, `factor * symbol + offset`, of a symbol of `torch.export`.

    Attributes:
        input, axis: its position.
    """

    input: str
    axis: int
    symbol: str
    factor: int
    offset: int

    @property
    def is_symbol(self) -> bool:
        """True if the symbol itself is the dimension."""
        return self.factor == 1 and self.offset == 0

    @property
    def name(self) -> str:
        """A name for it in formulas."""
        return f"{self.input}_axis{self.axis}"

    @property
    def formula_of_symbol(self) -> str:
        """The symbol as a formula of the dimension."""
        return f"({self.multiple} // {self.factor})"

    @property
    def multiple(self) -> str:
        """The expression that must be a multiple of the factor."""
        return f"({self.name}{_signed(-self.offset)})"


def dimensions(program: torch.export.ExportedProgram) -> list[Dimension]:
    """The dynamic dimensions of the program's inputs that are linear in one symbol, those that are symbols first."""
    inputs = set(program.graph_signature.user_inputs)
    found = [
        each
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
        for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ()))
        for each in [_linear(node.name, axis, size)]
        if each is not None
    ]
    return sorted(found, key=lambda each: not each.is_symbol)


def _linear(name: str, axis: int, size: Any) -> Dimension | None:
    expr = getattr(getattr(size, "node", None), "expr", None)
    if expr is None or len(expr.free_symbols) != 1:
        return None
    (symbol,) = expr.free_symbols
    factor = expr.coeff(symbol)
    offset = expr - factor * symbol
    if not factor.is_Integer or not offset.is_Integer or int(factor) <= 0:
        return None
    return Dimension(name, axis, str(symbol), int(factor), int(offset))


def range_relations(program: torch.export.ExportedProgram) -> Iterator[tuple[SizeRelation, str]]:
    """The least and the largest size of each symbol, that dimensions of one symbol agree, and where that is said."""
    first: dict[str, Dimension] = {}
    for each in dimensions(program):
        linear = f"{each.factor}*{each.symbol}{_signed(each.offset)}"
        where = f"dimension {each.axis} of {each.input!r} is {linear} in the exported program"
        if each.symbol in first:
            value = first[each.symbol].formula_of_symbol
            yield SizeRelation(each.name, "equal", f"{each.factor}*{value}{_signed(each.offset)}"), where
        elif each.factor > 1:
            yield SizeRelation(f"{each.multiple} % {each.factor}", "equal", 0), where
        first.setdefault(each.symbol, each)
    for symbol, bounds in program.range_constraints.items():
        if not symbol.is_symbol:  # follows from the symbol's
            continue
        where = f"torch.export captured the model for {symbol} in [{bounds.lower}, {bounds.upper}]"
        if str(bounds.lower).isdecimal() and int(bounds.lower) > _ARTIFICIAL_LEAST:
            yield SizeRelation(str(symbol), "at least", int(bounds.lower)), where
        if str(bounds.upper).isdecimal():
            yield SizeRelation(int(bounds.upper), "at least", str(symbol)), where


def _signed(number: int) -> str:
    """A number as the last term of a sum."""
    return "" if not number else f" {'-' if number < 0 else '+'} {abs(number)}"


def congruences(program: torch.export.ExportedProgram) -> dict[str, Congruence]:
    """Known congruences of dimensions, by the names that torch's ONNX exporter gives them ("4*s39")."""
    known = {}
    for each in dimensions(program):
        if each.factor > 1:
            size = _size_at(program, each)
            known[str(size)] = Congruence(each.factor, each.offset % each.factor)
    return known


def _size_at(program: torch.export.ExportedProgram, dimension: Dimension) -> Any:
    (node,) = (each for each in program.graph.nodes if each.op == "placeholder" and each.name == dimension.input)
    return node.meta["val"].shape[dimension.axis]
