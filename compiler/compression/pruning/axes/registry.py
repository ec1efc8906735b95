"""What each operator does to the axes of its operands: one rule per operator, in any module of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compiler.compression.pruning.nodes import Axis, Nodes
from compiler.passes.rewriting.graph import Call
from schedules.discovery import import_all

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

Axes = list[Axis]  # of a tensor
Value = Any  # Axes, or a list of values for a tuple


@dataclass(frozen=True, eq=False)
class Producer:
    """The axis of a constant weight that counts the results of a product."""

    constant: Expr
    axis: int
    labels: Axis


@dataclass
class Trace:
    """What the rules write to.

    Attributes:
        nodes: which positions go together.
        producers: in the order of the graph.
        batched: axes over which products of two activations are independent: the heads of attention.
        transposed: variables that are a constant with its axes in another order, with that constant and its axes.
    """

    nodes: Nodes = field(default_factory=Nodes)
    producers: list[Producer] = field(default_factory=list)
    batched: list[Axis] = field(default_factory=list)
    transposed: dict[Any, tuple[Any, Axes]] = field(default_factory=dict)


# Given the call, the values of its operands (None for what is not a tensor) and the rank of its result.
Rule = Callable[[Trace, Call, Sequence[Value]], Value]
_RULES: dict[str, Rule] = {}
_discovered = False


def axis_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for calls of the operators `names`."""

    def register(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return register


def rule_for(name: str) -> Rule | None:
    """The rule of an operator; None: its operands and results must stay as they are."""
    global _discovered
    if not _discovered:
        _discovered = True
        import_all("compiler.compression.pruning.axes")
    return _RULES.get(name)


def is_axes(value: Value) -> bool:
    """Whether a value is that of a tensor."""
    return isinstance(value, list) and not any(isinstance(each, list) for each in value)


def fix_value(trace: Trace, value: Value) -> None:
    """Every axis of a tensor or a tuple must stay."""
    if isinstance(value, list):
        for each in value:
            fix_value(trace, each)
    else:
        trace.nodes.fix(value)
