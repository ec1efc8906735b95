"""Coverage of a model: its compilable operators, determined without compiling it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx

from compiler.frontends.onnx.evaluation.evaluator import can_evaluate
from compiler.frontends.onnx.loading.loader import FunctionKey, ModelSource, load_model
from compiler.frontends.onnx.registry import find_converter
from compiler.frontends.onnx.structure import normalized_domain, schema_of, subgraphs

Support = Literal["supported", "rewritten", "refused"]


@dataclass(frozen=True)
class OperatorCoverage:
    """An operator of a model: number of nodes, and "supported", "rewritten" or "refused"."""

    operator: str
    domain: str
    count: int
    support: Support
    reason: str = ""

    def __str__(self) -> str:
        name = f"{self.domain}.{self.operator}" if self.domain else self.operator
        return f"{self.support:<10} {self.count:>6}  {name}" + (f"  ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class CoverageReport:
    """Operators by support: converted ("supported"), expanded into others ("rewritten"), or "refused"."""

    operators: list[OperatorCoverage] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True if no operator is refused. Individual nodes can still be refused for their attributes or types."""
        return not self.of("refused")

    def of(self, support: Support) -> list[OperatorCoverage]:
        """Return the operators with that kind of support."""
        return [item for item in self.operators if item.support == support]

    def __str__(self) -> str:
        counts = {kind: sum(item.count for item in self.of(kind)) for kind in ("supported", "rewritten", "refused")}
        head = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return "\n".join([f"{sum(counts.values())} nodes: {head}", *(f"  {item}" for item in self.operators)])


def coverage_report(source: ModelSource) -> CoverageReport:
    """Look up every operator of a model, including those in subgraphs and functions.

    Raises InvalidModelError or StorageError if the model cannot be read.
    """
    model = load_model(source)
    counts: Counter[tuple[str, str, int]] = Counter()
    called: set[FunctionKey] = set()
    _count(model.nodes, model.opsets, model.functions, counts, called)
    items = [_coverage(*key, count, model.functions) for key, count in counts.items()]
    order = {"refused": 0, "rewritten": 1, "supported": 2}
    return CoverageReport(sorted(items, key=lambda item: (order[item.support], -item.count, item.operator)))


def _count(
    nodes: Iterable[onnx.NodeProto],
    opsets: Mapping[str, int],
    functions: Mapping[FunctionKey, onnx.FunctionProto],
    counts: Counter[tuple[str, str, int]],
    called: set[FunctionKey],
) -> None:
    for node in nodes:
        domain = normalized_domain(node.domain)
        counts[(domain, node.op_type, opsets.get(domain, 1))] += 1
        for graph in subgraphs(node):
            _count(graph.node, opsets, functions, counts, called)
        key = (domain, node.op_type)
        if key in functions and key not in called:
            called.add(key)
            imports = {normalized_domain(item.domain): item.version for item in functions[key].opset_import}
            _count(functions[key].node, imports or opsets, functions, counts, called)


def _coverage(
    domain: str, operator: str, opset: int, count: int, functions: Mapping[FunctionKey, onnx.FunctionProto]
) -> OperatorCoverage:
    if (domain, operator) in functions:
        return OperatorCoverage(operator, domain, count, "rewritten", "a function of the model, inlined")
    if find_converter(operator, opset, domain) is not None:
        return OperatorCoverage(operator, domain, count, "supported")
    if domain == "" and can_evaluate(operator):
        return OperatorCoverage(operator, domain, count, "supported", "computed while importing")
    schema = schema_of(operator, opset, domain)
    if schema is None:
        return OperatorCoverage(operator, domain, count, "refused", "unknown operator")
    if schema.has_function or schema.has_context_dependent_function:
        return OperatorCoverage(operator, domain, count, "rewritten", "expanded into simpler operators")
    return OperatorCoverage(operator, domain, count, "refused", f"not supported in opset {opset}")
