"""Nodes of a PyTorch model are named by module paths."""

from __future__ import annotations

import torch

from compiler.frontends.source import import_model


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.second(torch.relu(self.first(x))))


def test_torch_modules_give_their_paths() -> None:
    imported = import_model(torch.nn.Sequential(_Block()).eval(), example_inputs=(torch.zeros(2, 4),))
    names = {node.name for nodes in imported.nodes.values() for node in nodes}
    assert {"0.first", "0.second", "0.add", "0.relu"} <= names
