"""Arguments of Gemma's decoders: masks in which the tokens of an image see one another."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def gemma3_arguments(text: Any, _: Tensor, stands: Tensor, position: Tensor, capacity: int) -> dict[str, Any]:
    """Return arguments of a decoder: masks in which an image's tokens see one another.

    Args:
        text: the decoder.
        stands: (1, n), true for image tokens; all rows of an image are tokens of this run.
        position: of the first token.
        capacity: of the cache.
    """
    return gemma_masks(text.config, stands, position, capacity)


def gemma4_arguments(text: Any, tokens: Tensor, stands: Tensor, position: Tensor, capacity: int) -> dict[str, Any]:
    """Image tokens see one another in layers with a window, and have the layer inputs of padding."""
    config = text.config
    alike = stands if config.use_bidirectional_attention == "vision" else torch.zeros_like(stands)
    found = gemma_masks(config, alike, position, capacity)
    causal = gemma_masks(config, torch.zeros_like(stands), position, capacity)
    found["attention_mask"]["full_attention"] = causal["attention_mask"]["full_attention"]
    if config.hidden_size_per_layer_input:
        words = torch.where(stands, config.pad_token_id, tokens)
        found["per_layer_inputs"] = text.get_per_layer_inputs(words)
    return found


def gemma_masks(config: Any, stands: Tensor, position: Tensor, capacity: int) -> dict[str, Any]:
    """Return positions, and masks (1, 1, n, capacity) in which an image's tokens see one another, within windows.

    `stands` (1, n) is true for image tokens; all rows of an image are tokens of this run.
    """
    count = stands.shape[1]
    queries, keys = torch.arange(count) + position, torch.arange(capacity)
    begins = stands[0] & ~torch.nn.functional.pad(stands[0], (1, 0))[:count]
    number = torch.where(stands[0], torch.cumsum(begins.to(torch.int64), 0), 0)  # of the image, counted from 1
    own = (keys >= position) & (keys < position + count)
    numbers = torch.where(own, number[(keys - position).clamp(0, count - 1)], 0)
    alike = (numbers[None] == number[:, None]) & (number[:, None] > 0)
    full = (keys[None] <= queries[:, None]) | alike
    sliding = full & (keys[None] > queries[:, None] - config.sliding_window)
    masks = {"full_attention": full[None, None], "sliding_attention": sliding[None, None]}
    return {"attention_mask": masks, "position_ids": queries[None]}
