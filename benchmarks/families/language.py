"""Language models of transformers with random weights, at dynamic batches and lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.families.registry import integers, net, ones
from benchmarks.families.speech import FirstOutput, evaluating

VOCABULARY = 8000
IDS = {"ids": integers(VOCABULARY, "batch", "tokens")}
MASKED = {**IDS, "mask": ones("batch", "tokens")}
SIZES = ({"batch": 1, "tokens": 64}, {"batch": 8, "tokens": 32})


@net("bert", MASKED, SIZES, tolerance=1e-3)
def bert() -> nn.Module:
    """Four layers of 256 (BERT-mini)."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    torch.manual_seed(0)
    return FirstOutput(evaluating(BertModel(config)), "input_ids", "attention_mask")


@net("t5-encoder", MASKED, SIZES, tolerance=1e-3)
def t5_encoder() -> nn.Module:
    """Four layers of 256 with relative positions."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=VOCABULARY, d_model=256, d_kv=32, d_ff=1024, num_layers=4, num_heads=8)
    torch.manual_seed(0)
    return FirstOutput(evaluating(T5EncoderModel(config)), "input_ids", "attention_mask")


@net("gpt2", IDS, SIZES, tolerance=1e-3)
def gpt2() -> nn.Module:
    """Four layers of 256 over a prompt, logits of every token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=4, n_head=4)
    torch.manual_seed(0)
    return FirstOutput(evaluating(GPT2LMHeadModel(config)), "input_ids", use_cache=False)


class _SelectiveScan(nn.Module):
    """The block of Mamba (arXiv:2312.00752) with its recurrence unrolled over a fixed length."""

    def __init__(self, width: int, inner: int, states: int = 16, rank: int = 8) -> None:
        super().__init__()
        self.rank, self.states = rank, states
        self.norm = nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.convolution = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.project, self.step = nn.Linear(inner, rank + 2 * states, bias=False), nn.Linear(rank, inner)
        self.log_a = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, x: Any) -> Any:
        length = x.shape[1]
        inner, gate = self.into(self.norm(x)).chunk(2, -1)
        inner = nn.functional.silu(self.convolution(inner.transpose(1, 2))[..., :length]).transpose(1, 2)
        step, b, c = self.project(inner).split([self.rank, self.states, self.states], -1)
        step = nn.functional.softplus(self.step(step))
        decay = (step[..., None] * -self.log_a.exp()).exp()
        added = step[..., None] * b[:, :, None] * inner[..., None]
        state, outputs = torch.zeros_like(added[:, 0]), []
        for index in range(length):
            state = state * decay[:, index] + added[:, index]
            outputs.append((state * c[:, index, None]).sum(-1))
        result = torch.stack(outputs, 1) + inner * self.skip
        return x + self.out(result * nn.functional.silu(gate))


@net("mamba", {"ids": integers(VOCABULARY, 1, 32)}, tolerance=1e-3)
def mamba() -> nn.Module:
    """Four blocks of 128 over 32 tokens."""

    class Mamba(nn.Module):
        def __init__(self, width: int = 128) -> None:
            super().__init__()
            self.table = nn.Embedding(VOCABULARY, width)
            self.blocks = nn.Sequential(*[_SelectiveScan(width, 2 * width) for _ in range(4)])
            self.norm = nn.LayerNorm(width)

        def forward(self, ids: torch.Tensor) -> Any:
            return self.norm(self.blocks(self.table(ids))) @ self.table.weight.T

    torch.manual_seed(0)
    return Mamba().eval()
