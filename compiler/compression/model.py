"""Result of the compression techniques, their internal form of a model, and the names of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax
from tvm.ir import GenericConst, IRModule

import targets
from compiler.compression.report import CompressionReport
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.graph import Var, bindings_of
from compiler.passes.rewriting.node_tracker import Nodes, NodeTracker
from compiler.profiling.attribution import main_node


@dataclass(frozen=True, kw_only=True)
class ReportedModel(ImportedModel):
    """A model that a technique derived from another, with its report.

    Attributes:
        name: name of the model it was made from.
        report: what was done and what it cost; `report.save("report.html")`.
    """

    name: str
    report: Any

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return str(self.report._repr_html_())


@dataclass(frozen=True, kw_only=True, repr=False)
class CompressedModel(ReportedModel):
    """A compressed model, for `tensorwright.compile` or the next technique.

    Attributes:
        trained: the torch module it was made from, with its masks, if there is one; `distill` trains it further.
        measured: the settings with which `report.after` was measured.
    """

    report: CompressionReport
    trained: Any = None
    measured: Any = None


CompressedModel.__module__ = "tensorwright"  # public import path, for reprs, tracebacks and pickles


def canonical(model: ImportedModel, target: targets.Target) -> ImportedModel:
    """The model with batch norms folded and constants computed."""
    context = PipelineContext(
        target=target, machine=target.machine, options=PassOptions(checks=model.checks, nodes=model.nodes)
    )
    mod = run_pipeline(model.mod, context, until="canonicalize").mod
    return replace(model, mod=mod, nodes=context.tracker.nodes)


class LayerNames:
    """Gives each layer the name of its node in the model, or a default if it has none.

    Args:
        nodes: the model's nodes by variable, as in `ImportedModel`.
    """

    def __init__(self, nodes: Mapping[str, Nodes]) -> None:
        self._tracker = NodeTracker(nodes)
        self._taken: dict[str, int] = {}

    def name(self, variable: Var, otherwise: str) -> str:
        """A unique name: nodes that consist of several layers are numbered."""
        node = main_node(self._tracker.of(str(variable.name)))
        name = otherwise if node is None else node.name
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name} #{count}"


def weight_names(model: ImportedModel) -> dict[GenericConst, str]:
    """Name for each constant tensor of `main` that a node reads: the first such node's, with the tensor's shape."""
    nodes = NodeTracker(model.nodes).all_of(model.mod)
    names: dict[GenericConst, str] = {}
    for variable, constant in _constants_read(model.mod):
        node = main_node(nodes.get(str(variable.name), ()))
        if node is not None:
            sizes = "x".join(map(str, constant.value.shape))
            names.setdefault(constant, f"{node.name} {sizes}")
    return names


def _constants_read(mod: IRModule) -> Iterator[tuple[Var, GenericConst]]:
    for binding in bindings_of(mod["main"].body):
        if isinstance(binding.value, relax.Call):
            for constant in _constants_in(binding.value.args):
                yield binding.var, constant


def _constants_in(arguments: Any) -> Iterator[GenericConst]:
    for argument in arguments:
        if isinstance(argument, GenericConst):
            yield argument
        elif isinstance(argument, relax.Tuple):
            yield from _constants_in(argument.fields)
