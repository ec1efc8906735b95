"""Graph convolutions and networks of PyTorch Geometric: node features and an edge list."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.coverage.packages.model import Axes, Build, PackageModel, with_call

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
# Convolutions that need a third input: a value per edge.
_EDGE_VALUES = {
    **dict.fromkeys(("ECConv", "NNConv", "GINEConv", "GMMConv", "PDNConv"), "edge_attr"),
    **dict.fromkeys(("RGCNConv", "FastRGCNConv", "RGATConv"), "edge_type"),
}
_MODELS = ("GCN", "GraphSAGE", "GIN", "GAT", "PNA", "EdgeCNN", "PMLP", "LINKX", "GraphUNet", "RECT_L")

# Input shapes by name; inputs named *index and *type are integers.
_SHAPES: dict[str, tuple[int, ...]] = {
    "x": (_NODES, _CHANNELS),
    "layers": (_NODES, 2, _CHANNELS),
    "pos": (_NODES, 3),
    "normal": (_NODES, 3),
    "node_type": (_NODES,),
    "edge_index": (2, _EDGES),
    "edge_type": (_EDGES,),
    "edge_attr": (_EDGES, _CHANNELS),
    "pseudo": (_EDGES, 3),
    "graph_index": (_NODES,),
    "dense": (2, _NODES, _CHANNELS),
    "adjacency": (2, _NODES, _NODES),
    "assignment": (2, _NODES, 4),
}
_AXES = {"edge_index": 1, "dense": 1, "adjacency": 1, "assignment": 1}  # the dynamic axis of nodes or edges, if not 0


def _mlp(inputs: int, outputs: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))


def _edges(net: Any, x: Any, edge_index: Any) -> Any:
    return net(x, edge_index)


def _valued_edges(net: Any, x: Any, edge_index: Any, edge_attr: Any) -> Any:
    return net(x, edge_index, edge_attr)


def _typed_edges(net: Any, x: Any, edge_index: Any, edge_type: Any) -> Any:
    return net(x, edge_index, edge_type)


def _points(net: Any, x: Any, pos: Any, edge_index: Any) -> Any:
    return net(x, pos, edge_index)


def _dense(net: Any, dense: Any, adjacency: Any) -> Any:
    return net(dense, adjacency)


def _nodes(net: Any, x: Any) -> Any:
    return net(x)


def _graphs(net: Any, x: Any, graph_index: Any) -> Any:
    return net(x, graph_index)


def _three_graphs(net: Any, x: Any, graph_index: Any) -> Any:
    return net(x, graph_index, batch_size=3)


def _aggregated(net: Any, x: Any, graph_index: Any) -> Any:
    return net(x, graph_index, dim_size=3)


def _in_order(net: Any, x: Any, edge_index: Any, graph_index: Any) -> Any:
    return net(x, edge_index, graph_index.sort()[0])


# (name, constructor in torch_geometric.nn, call: parameters are named like the inputs)
_OTHERS: tuple[tuple[str, Callable[[Any], Any], Callable[..., Any]], ...] = (
    ("DNAConv", lambda n: n.DNAConv(8), lambda net, layers, edge_index: net(layers, edge_index)),
    ("DirGNNConv", lambda n: n.DirGNNConv(n.SAGEConv(8, 8)), _edges),
    ("FiLMConv of relations", lambda n: n.FiLMConv(8, 8, num_relations=3), _typed_edges),
    ("GPSConv", lambda n: n.GPSConv(8, n.GCNConv(8, 8), heads=2), _edges),
    ("HEATConv", lambda n: n.HEATConv(8, 8, 3, 3, 4, 8, 4), lambda net, x, edge_index, node_type, edge_type, edge_attr:
     net(x, edge_index, node_type, edge_type, edge_attr)),
    ("PPFConv", lambda n: n.PPFConv(_mlp(12, 8), _mlp(8, 8), add_self_loops=False),
     lambda net, x, pos, normal, edge_index: net(x, pos, normal, edge_index)),
    ("PointNetConv", lambda n: n.PointNetConv(_mlp(11, 8), _mlp(8, 8)), _points),
    ("PointGNNConv", lambda n: n.PointGNNConv(_mlp(8, 3), _mlp(11, 8), _mlp(8, 8)), _points),
    ("PointTransformerConv", lambda n: n.PointTransformerConv(8, 8), _points),
    ("SplineConv", lambda n: n.SplineConv(8, 8, 3, 2),
     lambda net, x, edge_index, pseudo: net(x, edge_index, pseudo.sigmoid())),
    ("GMMConv of edges", lambda n: n.GMMConv(8, 8, 3, 2),
     lambda net, x, edge_index, pseudo: net(x, edge_index, pseudo)),
    ("RGCNConv of bases", lambda n: n.RGCNConv(8, 8, 3, num_bases=2), _typed_edges),
    ("GATv2Conv of edges", lambda n: n.GATv2Conv(8, 8, heads=2, edge_dim=8), _valued_edges),
    ("TransformerConv of edges", lambda n: n.TransformerConv(8, 8, heads=2, edge_dim=8, beta=True), _valued_edges),
    ("GENConv of edges", lambda n: n.GENConv(8, 8, aggr="powermean", edge_dim=8, learn_p=True), _valued_edges),
    ("AttentiveFP", lambda n: n.AttentiveFP(8, 8, 4, 8, 2, 2), lambda net, x, edge_index, edge_attr, graph_index:
     net(x, edge_index, edge_attr, graph_index)),
    ("NeuralFingerprint", lambda n: n.models.NeuralFingerprint(8, 8, 4, 2), lambda net, x, edge_index, graph_index:
     net(x, edge_index, graph_index, 3)),
    ("DeepGCNLayer", lambda n: n.DeepGCNLayer(n.GENConv(8, 8), torch.nn.LayerNorm(8), torch.nn.ReLU()), _edges),
    ("GroupAddRev", lambda n: n.GroupAddRev(n.SAGEConv(4, 4), num_groups=2), _edges),
    ("SGFormer", lambda n: n.models.SGFormer(8, 8, 4), _in_order),
    ("Polynormer", lambda n: n.models.Polynormer(8, 8, 4), _in_order),
    ("InnerProductDecoder", lambda n: n.InnerProductDecoder(), _edges),
    ("JumpingKnowledge", lambda n: n.JumpingKnowledge("lstm", 8, 2), lambda net, x: net([x, 2 * x, x.sin()])),
    ("LabelPropagation", lambda n: n.LabelPropagation(2, 0.5),
     lambda net, node_type, edge_index: net(node_type, edge_index)),
    ("TopKPooling", lambda n: n.TopKPooling(8, 0.5), _edges),
    ("SAGPooling", lambda n: n.SAGPooling(8, 0.5), _edges),
    ("ASAPooling", lambda n: n.ASAPooling(8, 0.5), _edges),
    ("MemPooling", lambda n: n.MemPooling(8, 8, 2, 3), lambda net, dense: net(dense)),
    ("dense_diff_pool", lambda n: n.dense_diff_pool, lambda net, dense, adjacency, assignment:
     net(dense, adjacency, assignment)),
    ("dense_mincut_pool", lambda n: n.dense_mincut_pool, lambda net, dense, adjacency, assignment:
     net(dense, adjacency.abs(), assignment)),
    ("DMoNPooling", lambda n: n.DMoNPooling(8, 4), lambda net, dense, adjacency: net(dense, adjacency.abs())),
    ("DenseGCNConv", lambda n: n.DenseGCNConv(8, 8), _dense),
    ("DenseGINConv", lambda n: n.DenseGINConv(_mlp(8, 8)), _dense),
    ("DenseGraphConv", lambda n: n.DenseGraphConv(8, 8), _dense),
    ("DenseSAGEConv", lambda n: n.DenseSAGEConv(8, 8), _dense),
    ("DenseGATConv", lambda n: n.DenseGATConv(8, 8, 2), _dense),
    ("InstanceNorm", lambda n: n.InstanceNorm(8), _three_graphs),
    ("LayerNorm", lambda n: n.LayerNorm(8), _three_graphs),
    ("GraphNorm", lambda n: n.GraphNorm(8), _three_graphs),
    ("GraphSizeNorm", lambda n: n.GraphSizeNorm(), _three_graphs),
    ("PairNorm", lambda n: n.PairNorm(), _nodes),
    ("MeanSubtractionNorm", lambda n: n.MeanSubtractionNorm(), _graphs),
    ("BatchNorm", lambda n: n.BatchNorm(8), _nodes),
    ("DiffGroupNorm", lambda n: n.DiffGroupNorm(8, 4), _nodes),
    ("SoftmaxAggregation", lambda n: n.aggr.SoftmaxAggregation(learn=True), _aggregated),
    ("PowerMeanAggregation", lambda n: n.aggr.PowerMeanAggregation(learn=True), _aggregated),
    ("QuantileAggregation", lambda n: n.aggr.QuantileAggregation([0.25, 0.7]), _aggregated),
    ("MultiAggregation", lambda n: n.aggr.MultiAggregation(["mean", "max", "min", "mul", "var", "std"]), _aggregated),
    ("MedianAggregation", lambda n: n.aggr.MedianAggregation(), _aggregated),
    ("AttentionalAggregation", lambda n: n.aggr.AttentionalAggregation(_mlp(8, 1)), _aggregated),
    ("DeepSetsAggregation", lambda n: n.aggr.DeepSetsAggregation(_mlp(8, 8), _mlp(8, 8)), _aggregated),
    ("VariancePreservingAggregation", lambda n: n.aggr.VariancePreservingAggregation(), _aggregated),
    ("DegreeScalerAggregation",
     lambda n: n.aggr.DegreeScalerAggregation(["mean"], ["identity", "linear"], torch.tensor([1, 3])), _aggregated),
    ("Set2Set", lambda n: n.aggr.Set2Set(8, 2), _aggregated),
    ("SetTransformerAggregation", lambda n: n.aggr.SetTransformerAggregation(8, heads=2),
     lambda net, x, graph_index: net(x, graph_index.sort()[0], dim_size=3, max_num_elements=20)),
    ("LSTMAggregation", lambda n: n.aggr.LSTMAggregation(8, 8),
     lambda net, x, graph_index: net(x, graph_index.sort()[0], dim_size=3, max_num_elements=20)),
    ("SortAggregation", lambda n: n.aggr.SortAggregation(2),
     lambda net, x, graph_index: net(x, graph_index.sort()[0], dim_size=3, max_num_elements=20)),
    ("models/GAT of edges", lambda n: n.GAT(8, 8, 2, edge_dim=8),
     lambda net, x, edge_index, edge_attr: net(x, edge_index, edge_attr=edge_attr)),
    ("models/GCN of layers", lambda n: n.GCN(8, 8, 3, 4, norm="graph_norm", jk="lstm"), _edges),
    ("models/MLP", lambda n: n.MLP([8, 16, 4], norm="layer_norm"), _nodes),
)  # fmt: skip


def geometric_models() -> Iterator[PackageModel]:
    """Convolutions and models of node features and edges, with dynamic numbers of nodes and edges."""
    package = importlib.import_module("torch_geometric.nn")
    for name, kind in inspect.getmembers(package.conv, inspect.isclass):
        if "edge_index" in inspect.signature(getattr(kind, "forward", kind)).parameters and name != "MessagePassing":
            tied = ((2, 0, 1),) if kind.__name__ in _EDGE_VALUES else ()
            yield PackageModel(name, _geometric(kind), ((0, 0, 1), (1, 1, 1)), tied)
    for name in _MODELS:
        yield PackageModel(f"models/{name}", _geometric(getattr(package.models, name)), ((0, 0, 1), (1, 1, 1)))
    for name, make, call in _OTHERS:
        inputs = list(inspect.signature(call).parameters)[1:]
        yield PackageModel(name, _other(make, inputs, call), *_axes(inputs))


def _axes(inputs: list[str]) -> tuple[Axes, Axes]:
    """Numbers of nodes and edges: dynamic in the first input that has them, tied to that in the others."""
    sizes = [_SHAPES[name][_AXES.get(name, 0)] for name in inputs]
    first = [sizes.index(size) for size in dict.fromkeys(sizes)]
    dynamic = tuple((place, _AXES.get(inputs[place], 0), 1) for place in first)
    tied = [
        (place, _AXES.get(name, 0), first.index(sizes.index(sizes[place])))
        for place, name in enumerate(inputs)
        if place not in first
    ]
    return dynamic, (*tied, *((inputs.index(name), 2, 0) for name in inputs if name == "adjacency"))


def _other(make: Callable[[Any], Any], inputs: list[str], call: Callable[..., Any]) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        net = make(importlib.import_module("torch_geometric.nn"))
        given = tuple(
            torch.randint(0, _NODES if name == "edge_index" else 3, _SHAPES[name])
            if name.endswith(("index", "type"))
            else torch.randn(_SHAPES[name])
            for name in inputs
        )
        return with_call(net, call), given

    return build


def _geometric(kind: Any) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
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
