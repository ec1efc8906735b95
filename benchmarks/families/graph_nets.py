"""Graph neural networks written with gather and scatter, like lowered layers of PyTorch Geometric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.catalog import package_folder
from benchmarks.families.registry import floats, integers, net

FEATURES, HIDDEN, CLASSES = 128, 64, 16
INPUTS = {"x": floats("nodes", FEATURES), "edges": integers("nodes", 2, "edges")}
# Of the size of Cora, and a small graph such as a molecule.
SIZES = ({"nodes": 2708, "edges": 10556}, {"nodes": 32, "edges": 70})


def _sum_by_target(messages: Any, target: Any, nodes: int) -> Any:
    zeros = torch.zeros(nodes, messages.shape[1], dtype=messages.dtype)
    return zeros.index_add(0, target, messages)


class _GCNLayer(nn.Module):
    """Kipf and Welling, arXiv:1609.02907, equation 2, with self loops."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer)

    def forward(self, x: Any, source: Any, target: Any) -> Any:
        nodes = x.shape[0]
        degree = torch.ones(nodes).index_add(0, target, torch.ones(target.shape[0]))
        scale = degree.rsqrt()
        x = self.linear(x)
        messages = x[source] * (scale[source] * scale[target])[:, None]
        return _sum_by_target(messages, target, nodes) + x * (scale * scale)[:, None]


class _SageLayer(nn.Module):
    """GraphSAGE with means of neighbours: Hamilton et al., arXiv:1706.02216."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.own, self.neighbours = nn.Linear(inner, outer), nn.Linear(inner, outer, bias=False)

    def forward(self, x: Any, source: Any, target: Any) -> Any:
        nodes = x.shape[0]
        count = torch.zeros(nodes).index_add(0, target, torch.ones(target.shape[0])).clamp(min=1)
        mean = _sum_by_target(x[source], target, nodes) / count[:, None]
        return self.own(x) + self.neighbours(mean)


class _GATLayer(nn.Module):
    """Graph attention of several heads: Velickovic et al., arXiv:1710.10903; softmax over a node's incoming edges."""

    def __init__(self, inner: int, outer: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, outer // heads
        self.linear = nn.Linear(inner, outer, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(heads, self.width) * 0.1) for _ in range(2))

    def forward(self, x: Any, source: Any, target: Any) -> Any:
        nodes = x.shape[0]
        x = self.linear(x).reshape(nodes, self.heads, self.width)
        scores = (x * self.source).sum(-1)[source] + (x * self.target).sum(-1)[target]
        scores = nn.functional.leaky_relu(scores, 0.2)
        index = target[:, None].expand(-1, self.heads)
        highest = torch.full((nodes, self.heads), -1e30).scatter_reduce(0, index, scores, "amax")
        weights = (scores - highest[target]).exp()
        total = _sum_by_target(weights, target, nodes)
        weights = weights / total[target]
        messages = (x[source] * weights[:, :, None]).reshape(-1, self.heads * self.width)
        return _sum_by_target(messages, target, nodes)


class _GraphNet(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = layer(FEATURES, HIDDEN), layer(HIDDEN, CLASSES)

    def forward(self, x: Any, edges: Any) -> Any:
        source, target = edges[0], edges[1]
        return self.second(nn.functional.elu(self.first(x, source, target)), source, target)


def _graph_net(layer: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return _GraphNet(layer).eval()


@net("gcn", INPUTS, SIZES)
def gcn() -> nn.Module:
    """Two layers, for nodes' classes."""
    return _graph_net(_GCNLayer)


@net("graphsage", INPUTS, SIZES)
def graphsage() -> nn.Module:
    """Two layers, for nodes' classes."""
    return _graph_net(_SageLayer)


@net("gat", INPUTS, SIZES, exporter="torchscript")
def gat() -> nn.Module:
    """Two layers of four heads."""
    return _graph_net(_GATLayer)


CAUSTIC = {
    "element": integers(5, "atoms"),
    "amino_acid": integers(20, "atoms"),
    "atom_role": integers(4, "atoms"),
    "bfactor": floats("atoms"),
    "edge_index": integers("atoms", 2, "edges"),
    "edge_dist": floats("edges"),
    "seq_sep": integers(5, "edges"),
    "same_residue": integers(2, "edges", dtype="float32"),
    "target_indices": integers("atoms", "residues", 6),
    "target_mask": integers(2, "residues", 6, dtype="bool"),
    "residue_types": integers(20, "residues"),
    "residue_geometry": floats("residues", 52),
    "target_environment": floats("residues", 6, 15),
    "temperature_feature": floats("residues", 1),
    "target_atom_rsasa": floats("residues", 6),
    "pos": floats("atoms", 3),
    "node_normal": floats("atoms", 3),
    "is_hbond": integers(2, "edges", dtype="float32"),
    "hb_cos": floats("edges"),
}


@net("painn", CAUSTIC, [{"atoms": 600, "edges": 9000, "residues": 76}], tolerance=1e-3)
def painn() -> Path:
    """Trained PaiNN (arXiv:2102.03150) for chemical shifts of proteins."""
    return package_folder("caustic") / "data" / "best_v2_carbons.onnx"
