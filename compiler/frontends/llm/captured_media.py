"""Encoders of images and sounds, and decoders whose tokens their rows replace, as transformers computes them.

An encoder returns `features` (rows, width) and, for some models, `shifts` (rows, 4): offsets of 3-D rotary positions
(arXiv:2409.12191) relative to a token's index, and in the last column the offset of tokens after the image; and `deep`
(rows, layers, width), added after the first layers of the decoder (arXiv:2406.04334). Rows excluded by `kept` (rows)
replace no token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from compiler.frontends.llm.media_rows import FEATURES
from compiler.frontends.llm.patch_positions import merge_size
from compiler.frontends.llm.transformers_decoder import (
    LOGITS,
    cache_argument,
    keep_all_tokens,
    read_caches,
    register_caches,
)

DEEP, KEPT = "deep", "kept"
EXAMPLES = 2  # images or sounds in an encoder's example inputs
_MAX_MEDIA = 64  # images or sounds per prompt
_DEEP_ROWS = "_deepstack_process"  # adds to image tokens, whose number depends on the prompt
Tensor = torch.Tensor
Outputs = dict[str, Tensor]


class MediaEncoder(torch.nn.Module):
    """A model's encoder; subclasses read the outputs of its processor."""

    def __init__(self, model: Any, rows: Callable[..., Outputs]) -> None:
        """`rows`: maps the model and the arguments of `forward` to the encoder's outputs."""
        super().__init__()
        self.model, self.rows = model, rows

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """Return inputs with `EXAMPLES` images or sounds, and their dynamic dimensions."""
        raise NotImplementedError

    def flat(self, *given: Tensor) -> Outputs:
        """Return the outputs, with the rows of all images or sounds concatenated."""
        return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in self.rows(self.model, *given).items()}


class Images(MediaEncoder):
    """Reads images of one size: (images, channels, height, width)."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        vision = self.model.config.vision_config
        size = vision.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.randn((EXAMPLES, int(getattr(vision, "num_channels", 3)), height, width), dtype=self.model.dtype)
        return {"pixel_values": pixels}, {"pixel_values": {0: _several("images")}}

    def forward(self, pixel_values: Tensor) -> Outputs:
        """The encoder's outputs."""
        return self.flat(pixel_values)


class ImagesOfTexts(Images):
    """Reads the images of one text: (1, images, channels, height, width), none of them padded."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        given, _ = super().example()
        return {name: each[None] for name, each in given.items()}, {"pixel_values": {1: _several("images")}}

    def forward(self, pixel_values: Tensor) -> Outputs:
        """The encoder's outputs."""
        return self.flat(pixel_values[0])


class PackedTiles(MediaEncoder):
    """Reads tiles of images, and for each row of the images four rows of tiles and their weights (rows, 4); the row 0
    ends a line, and those of tiles follow it."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        given, sizes = Images(self.model, self.rows).example()
        taps = torch.arange(24).reshape(-1, 4) % 5
        rows = {0: torch.export.Dim("packed", min=1, max=1 << 16)}
        packed = {"taps": taps, "weights": torch.rand(taps.shape)}
        return {**given, **packed}, {**sizes, "taps": rows, "weights": rows}

    def forward(self, pixel_values: Tensor, taps: Tensor, weights: Tensor) -> Outputs:
        """The encoder's outputs."""
        found = self.flat(pixel_values)[FEATURES]
        table = torch.cat([self.model.model.image_newline[None].to(found.dtype), found])
        return {FEATURES: (table[taps] * weights[..., None]).sum(1)}


class Patches(MediaEncoder):
    """Reads patches (patches, values) of images of any sizes, and the (frames, rows, columns) of each image."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        vision = self.model.config.vision_config
        merge = merge_size(self.model.config)
        grids = torch.tensor([[1, 2 * merge, 4 * merge], [1, 6 * merge, 2 * merge]])
        frames, channels = getattr(vision, "temporal_patch_size", 1), getattr(vision, "in_channels", 3)
        values = channels * frames * vision.patch_size**2
        pixels = torch.randn((int(grids.prod(-1).sum()), values), dtype=self.model.dtype)
        patches = merge**2 * torch.export.Dim("merged", min=1, max=1 << 16)
        sizes = {"pixel_values": {0: patches}, "image_grid_thw": {0: _several("images")}}
        return {"pixel_values": pixels, "image_grid_thw": grids}, sizes

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Outputs:
        """The encoder's outputs."""
        return self.rows(self.model, pixel_values, image_grid_thw)


class Sounds(MediaEncoder):
    """Reads spectrograms of one length: (sounds, bands, frames)."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        audio = self.model.config.audio_config
        features = torch.randn((EXAMPLES, audio.num_mel_bins, 2 * audio.max_source_positions), dtype=self.model.dtype)
        return {"input_features": features}, {"input_features": {0: _several("sounds")}}

    def forward(self, input_features: Tensor) -> Outputs:
        """The encoder's outputs."""
        return self.flat(input_features)


class MaskedSounds(MediaEncoder):
    """Reads spectrograms of one length, and a mask (sounds, frames) of frames that are not padding."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        inputs, sizes = Sounds(self.model, self.rows).example()
        features = inputs["input_features"]
        mask = torch.ones((features.shape[0], features.shape[2]), dtype=torch.int64)
        name = "feature_attention_mask"
        return {**inputs, name: mask}, {**sizes, name: dict(sizes["input_features"])}

    def forward(self, input_features: Tensor, feature_attention_mask: Tensor) -> Outputs:
        """The encoder's outputs."""
        return self.flat(input_features, feature_attention_mask)


@dataclass(frozen=True, kw_only=True)
class MediaModel:
    """A model that reads images or sounds, whose rows replace tokens.

    Attributes:
        reads: the inputs of its encoder.
        rows: maps the model and the encoder's inputs to outputs, each (images, rows per image, ...), or (rows, ...) for
            patches.
        text: the part of the model that is the decoder; None if it is built without PyTorch.
        token: the setting for the placeholder token of a row.
        arguments: additional arguments of the decoder, as `gemma3_arguments`; None for none.
    """

    reads: type[MediaEncoder]
    rows: Callable[..., Outputs]
    text: str | None = "language_model"
    token: str = "image_token_id"
    arguments: Callable[[Any, Tensor, Tensor, Tensor, int], dict[str, Any]] | None = None


class MediaDecoder(torch.nn.Module):
    """Maps tokens to the logits of the last one; its buffers are the cache, and encoder rows replace tokens."""

    def __init__(self, model: Any, found: MediaModel, cache: Any) -> None:
        super().__init__()
        assert found.text is not None
        self.model, self.text, self.found = model, getattr(model.model, found.text), found
        self.cache, self.token = cache, int(getattr(model.config, found.token))
        self.capacity = cache.layers[0].keys.shape[2]
        if hasattr(self.text, _DEEP_ROWS):
            setattr(self.text, _DEEP_ROWS, _with_deep_rows)
        keep_all_tokens(self.text)
        register_caches(self, cache.layers)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        first_row: Tensor,
        features: Tensor,
        shifts: Tensor | None = None,
        deep: Tensor | None = None,
    ) -> Outputs:
        """Return logits.

        Args:
            tokens, position: (1, n), and the first one's position.
            first_row: number of rows of all images before these tokens; for generated tokens, which replace no rows,
                its complement (~).
            features, shifts, deep: the encoder's outputs.
        """
        read_caches(self, self.cache.layers, position)
        stands = (tokens == self.token) & (first_row >= 0)
        behind = torch.cumsum(stands.to(torch.int64), 1) + torch.where(first_row >= 0, first_row, ~first_row)
        rows = (behind[0] - 1).clamp(0, features.shape[0] - 1)
        words = self.model.get_input_embeddings()(tokens)
        mixed = torch.where(stands[..., None], features[rows][None].to(words.dtype), words)
        arguments: dict[str, Any] = {cache_argument(self.text): self.cache}
        if self.found.arguments is not None:
            arguments |= self.found.arguments(self.text, tokens, stands, position, self.capacity)
        if shifts is not None:
            arguments["position_ids"] = three_positions(shifts, behind[0], stands, position)
        if deep is not None:
            arguments |= {"visual_pos_masks": stands, "deepstack_visual_embeds": list(deep[rows].unbind(1))}
        hidden = self.text(inputs_embeds=mixed, use_cache=True, **arguments).last_hidden_state
        logits = self.model.lm_head(hidden[:, -1:]).to(torch.float32)
        cap = getattr(self.text.config, "final_logit_softcapping", None)
        return {LOGITS: logits if cap is None else torch.tanh(logits / cap) * cap}


def _with_deep_rows(hidden: Tensor, stands: Tensor, rows: Tensor) -> Tensor:
    """Add rows (n, width) to hidden states (1, n, width) at the placeholder tokens."""
    return hidden + torch.where(stands[..., None], rows[None].to(hidden.dtype), 0)


def three_positions(shifts: Tensor, behind: Tensor, stands: Tensor, position: Tensor) -> Tensor:
    """Return positions (3, 1, n) of tokens in time, height and width.

    Args:
        shifts: (rows, 4), from the encoder.
        behind: (n), the number of rows up to and including each token.
        stands: (1, n), true for image tokens.
        position: the first token's position.
    """
    index = torch.arange(stands.shape[1]) + position
    shift = shifts[(behind - 1).clamp(0, shifts.shape[0] - 1)]
    text = torch.where(behind > 0, shift[:, 3], 0)[:, None]
    return (index[:, None] + torch.where(stands[0][:, None], shift[:, :3], text)).T[:, None]


def _several(name: str) -> Any:
    return torch.export.Dim(name, min=1, max=_MAX_MEDIA)
