"""Graph convolutions and networks of PyTorch Geometric: nodes with features, and a list of edges."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from tests.coverage.packages.model import Build, PackageModel, with_call

_CHANNELS, _NODES, _EDGES = 8, 12, 30
_ARGUMENTS: dict[str, Any] = {
    "in_channels": _CHANNELS,
    "out_channels": 8,
    "channels": _CHANNELS,
    "hidden_channels": 8,
    "num_layers": 2,
    "K": 2,
    "alpha": 0.1,
    "filter_size": 2,
    "aggregators": ["mean", "max", "sum", "std"],
    "scalers": ["identity", "amplification"],
    "num_relations": 3,
    "num_nodes": _NODES,
    "depth": 2,
}
_EDGE_ARGUMENTS: dict[str, Any] = {
    "dim": _CHANNELS,
    "kernel_size": 2,
    "edge_dim": _CHANNELS,
    "attention_mode": "multiplicative-self-attention",
}
# Convolutions that need a third input: a value for each edge.
_EDGE_VALUES = {
    **dict.fromkeys(("ECConv", "NNConv", "GINEConv", "GMMConv", "PDNConv"), "edge_attr"),
    **dict.fromkeys(("RGCNConv", "FastRGCNConv", "RGATConv"), "edge_type"),
}
_MODELS = ("GCN", "GraphSAGE", "GIN", "GAT", "PNA", "EdgeCNN", "PMLP", "LINKX", "GraphUNet", "RECT_L")


def geometric_models() -> Iterator[PackageModel]:
    """Convolutions and models that take node features and edges, with dynamic numbers of nodes and of edges."""
    package = importlib.import_module("torch_geometric.nn")
    for name, kind in inspect.getmembers(package.conv, inspect.isclass):
        if "edge_index" in inspect.signature(getattr(kind, "forward", kind)).parameters and name != "MessagePassing":
            tied = ((2, 0, 1),) if kind.__name__ in _EDGE_VALUES else ()
            yield PackageModel(name, _geometric(kind), ((0, 0, 1), (1, 1, 1)), tied)
    for name in _MODELS:
        yield PackageModel(f"models/{name}", _geometric(getattr(package.models, name)), ((0, 0, 1), (1, 1, 1)))


def _geometric(kind: Any) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        wanted = inspect.signature(kind).parameters
        known = _ARGUMENTS | (_EDGE_ARGUMENTS if kind.__name__ in _EDGE_VALUES else {})
        made = {name: value for name, value in known.items() if name in wanted}
        if "nn" in wanted:
            inputs = 2 * _CHANNELS if kind.__name__ == "EdgeConv" else _CHANNELS
            outputs = _CHANNELS * 8 if kind.__name__ in ("NNConv", "ECConv") else 8
            made["nn"] = torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
        if "deg" in wanted or kind.__name__ == "PNA":
            made["deg"] = torch.tensor([1, 4, 4, 2, 1])
        if kind.__name__ == "PNA":
            made.update(aggregators=_ARGUMENTS["aggregators"], scalers=_ARGUMENTS["scalers"])
        net: Any = kind(**made)
        edges = torch.stack([torch.randint(0, _NODES, (_EDGES,)), torch.randint(0, _NODES, (_EDGES,))])
        nodes = torch.randn(_NODES, _CHANNELS)
        values = _EDGE_VALUES.get(kind.__name__)
        if values is None:
            return with_call(net, _call(kind)), (nodes, edges)
        given = torch.randint(0, 3, (_EDGES,)) if values == "edge_type" else torch.randn(_EDGES, _CHANNELS)
        return with_call(net, lambda net, x, e, v: net(x, e, **{values: v})), (nodes, edges, given)

    return build


def _call(kind: Any) -> Callable[..., Any]:
    names = list(inspect.signature(kind.forward).parameters)
    if "x_0" in names:
        return lambda net, x, edges: net(x, x, edges)
    return lambda net, x, edges: net(x, edges)
