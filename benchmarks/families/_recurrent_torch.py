"""Recurrent nets as torch modules; imported only by their builders."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnrolledLstm(nn.Module):
    """An LSTM of cells, in one or two directions; the exporter unrolls the steps."""

    def __init__(self, features: int, hidden: int, directions: int = 1) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(features, hidden) for _ in range(directions))
        self.hidden = hidden

    def _direction(self, cell: nn.Module, columns: list[Tensor]) -> list[Tensor]:
        zeros = columns[0].new_zeros(columns[0].shape[0], self.hidden)
        state, outputs = (zeros, zeros), []
        for column in columns:
            state = cell(column, state)
            outputs.append(state[0])
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        columns = list(x.unbind(0))
        results = [self._direction(self.cells[0], columns)]
        for cell in list(self.cells)[1:]:
            results.append(self._direction(cell, columns[::-1])[::-1])
        return torch.stack([torch.cat(each, 1) for each in zip(*results, strict=True)])


class Crnn(nn.Module):
    """CRNN (Shi et al. 2015) for images of 32 rows, with cells instead of layers."""

    def __init__(self, classes: int = 37) -> None:
        super().__init__()
        sizes, layers, channels = (64, 128, 256, 256, 512, 512, 512), list[nn.Module](), 1
        pools = {0: (2, 2), 1: (2, 2), 3: (2, 1), 5: (2, 1)}
        for number, size in enumerate(sizes):
            last = number == len(sizes) - 1
            layers.append(nn.Conv2d(channels, size, (2, 1) if last else 3, padding=0 if last else 1))
            layers += [nn.BatchNorm2d(size)] if number in (2, 4, 6) else []
            layers.append(nn.ReLU())
            layers += [nn.MaxPool2d(pools[number])] if number in pools else []
            channels = size
        self.front = nn.Sequential(*layers)
        self.first, self.second = UnrolledLstm(512, 256, 2), UnrolledLstm(256, 256, 2)
        self.between, self.classes = nn.Linear(512, 256), nn.Linear(512, classes)

    def forward(self, image: Tensor) -> Tensor:
        columns = self.front(image).squeeze(2).permute(2, 0, 1)
        result: Tensor = self.classes(self.second(self.between(self.first(columns))))
        return result


class TextClassifier(nn.Module):
    """Embedding, bidirectional GRU, the mean over time, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.classes = nn.Embedding(1000, 128), nn.Linear(256, 10)
        self.layers = nn.GRU(128, 128, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        values, _ = self.layers(self.embedding(tokens))
        result: Tensor = self.classes(values.mean(1))
        return result
