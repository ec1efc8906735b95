"""Encoders of images and sounds whose rows replace tokens: a table of transformers models.

An encoder returns `features` (rows, width) and, for some models, `shifts` (rows, 4): offsets of 3-D rotary positions
(arXiv:2409.12191) relative to a token's index, and in the last column the offset of tokens after the image; and `deep`
(rows, layers, width), added after the first layers of the decoder (arXiv:2406.04334). Rows excluded by `kept` (rows)
replace no token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AttentionInterface, vision_utils

from compiler.frontends.llm.media_rows import FEATURES, SHIFTS
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
_WITHIN_SEGMENTS = "flash_within_segments"  # a name for which transformers makes one call for all segments


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


class Patches(MediaEncoder):
    """Reads patches (patches, values) of images of any sizes, and the (frames, rows, columns) of each image."""

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """See `MediaEncoder`."""
        vision = self.model.config.vision_config
        merge = _merge(self.model.config)
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


def gemma3_arguments(text: Any, _: Tensor, stands: Tensor, position: Tensor, capacity: int) -> dict[str, Any]:
    """Return arguments of a decoder: masks in which an image's tokens see one another.

    Args:
        text: the decoder.
        stands: (1, n), true for image tokens; all rows of an image are tokens of this run.
        position: of the first token.
        capacity: of the cache.
    """
    return gemma_masks(text.config, stands, position, capacity)


def _gemma4_arguments(text: Any, tokens: Tensor, stands: Tensor, position: Tensor, capacity: int) -> dict[str, Any]:
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


def _llava_rows(model: Any, images: Tensor) -> Outputs:
    config = model.config
    states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        chosen = [each[:, 1:] for each in chosen]
    return {FEATURES: model.model.multi_modal_projector(torch.cat(chosen, -1))}


def _gemma_rows(model: Any, images: Tensor) -> Outputs:
    return {FEATURES: model.model.multi_modal_projector(model.model.vision_tower(images).last_hidden_state)}


def _gemma4_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of Gemma 4: means of squares of patches, with attention within images."""
    tower = model.model.vision_tower
    patches = _PatchPositions(grids, pixels.shape[0], _merge(model.config))
    embedder, side = tower.patch_embedder, tower.config.patch_size
    # In the table of learned positions; callers may pass any grids.
    places = patches.coordinates.flip(-1)[None].clamp(0, embedder.position_embedding_size - 1)  # (x, y)
    values = pixels.reshape(-1, 3, side, side).permute(0, 2, 3, 1).reshape(1, pixels.shape[0], -1)
    hidden = embedder(values, places, torch.zeros((1, pixels.shape[0]), dtype=torch.bool))
    mask = (patches.frames[:, None] == patches.frames[None])[None, None]
    rotations = tower.encoder.rotary_emb(hidden, places)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, position_embeddings=rotations, attention_mask=mask, position_ids=places)
    pooled = hidden.reshape(-1, patches.unit, hidden.shape[-1]).mean(1) * hidden.shape[-1] ** 0.5
    if tower.config.standardize:
        pooled = (pooled - tower.std_bias) * tower.std_scale
    return {FEATURES: model.model.embed_vision(pooled)}


def _mistral_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of Mistral 3 (Pixtral's encoder): merged squares of patches, with attention within images."""
    tower, projector, config = model.model.vision_tower, model.model.multi_modal_projector, model.config
    patches = _PatchPositions(grids, pixels.shape[0], _merge(config))
    hidden = tower.ln_pre(pixels @ tower.patch_conv.weight.flatten(1).T)[None]
    mask = (patches.frames[:, None] == patches.frames[None])[None, None]
    rotations = tower.patch_positional_embedding(hidden, patches.coordinates)
    states = [hidden]
    for layer in tower.transformer.layers:
        states.append(layer(states[-1], mask, position_embeddings=rotations))
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    normalized = projector.norm(torch.cat(chosen, -1))
    squares = normalized.reshape(-1, patches.unit, normalized.shape[-1]).transpose(1, 2).flatten(1)
    merged = projector.patch_merger.merging_layer(squares)
    return {FEATURES: projector.linear_2(projector.act(projector.linear_1(merged)))}


def _merge(config: Any) -> int:
    """Return the side of the square of patches that make one row."""
    vision, name = config.vision_config, "spatial_merge_size"
    return int(getattr(config, name, None) or getattr(vision, name, None) or vision.pooling_kernel_size)


def _idefics_rows(model: Any, images: Tensor) -> Outputs:
    side = images.shape[-1] // model.config.vision_config.patch_size
    mask = torch.ones((images.shape[0], side, side), dtype=torch.bool)
    found = model.model.vision_model(pixel_values=images, patch_attention_mask=mask)
    return {FEATURES: model.model.connector(found.last_hidden_state)}


def _intern_rows(model: Any, images: Tensor) -> Outputs:
    config = model.config
    features = model.model.get_image_features(
        images,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )
    return {FEATURES: features.pooler_output}


def _voxtral_rows(model: Any, features: Tensor) -> Outputs:
    found = model.model.get_audio_features(features).pooler_output
    return {FEATURES: found.reshape(features.shape[0], -1, found.shape[-1])}


def _qwen_audio_rows(model: Any, features: Tensor, mask: Tensor) -> Outputs:
    """Return all rows, and a mask of those that are not padding."""
    tower = model.model.audio_tower
    halved, lengths = tower._get_feat_extract_output_lengths(mask.sum(-1))
    seen = torch.arange(tower.max_source_positions)[None] < halved[:, None]
    seen = seen[:, None, None].expand(-1, 1, tower.max_source_positions, -1)
    rows = model.model.multi_modal_projector(tower(features, attention_mask=seen).last_hidden_state)
    return {FEATURES: rows, KEPT: torch.arange(rows.shape[1])[None] < lengths[:, None]}


def _qwen_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of Qwen2-VL, 2.5 and 3, with attention within image frames or windows of them."""
    visual = model.model.visual
    _attend_within_segments(visual)
    patches = _PatchPositions(grids, pixels.shape[0], visual.spatial_merge_size)
    arguments: dict[str, Any] = {"position_ids": patches.coordinates, "cu_seqlens": patches.frames, "max_seqlen": 1}
    if hasattr(visual, "window_size"):
        # Attention does not depend on the order of patches, so they are not reordered.
        arguments["window_index"] = torch.arange(pixels.shape[0] // patches.unit)
        arguments["cu_window_seqlens"] = patches.windows(visual.window_size // visual.patch_size)
        arguments["max_window_seqlen"] = 1
    if hasattr(visual, "pos_embed"):
        taps = patches.taps(visual.num_grid_per_side, visual.interpolation_mode, visual.interpolation_align_corners)
        arguments["interp_indices"], arguments["interp_weights"] = taps
    features = visual(pixels, grid_thw=grids, **arguments)
    outputs = {FEATURES: features.pooler_output, SHIFTS: patches.shifts()}
    deep = getattr(features, "deepstack_features", None)
    return {**outputs, DEEP: torch.stack(deep, 1)} if deep else outputs


class _PatchPositions:
    """Positions of patches in their images, from grids (images, 3) of (frames, rows, columns); `merge` x `merge`
    consecutive patches make one encoder row.

    Computed per patch, since loops over images and data-dependent sizes cannot be exported.
    """

    def __init__(self, grids: Tensor, patches: int, merge: int) -> None:
        self._merge, self.unit = merge, merge**2
        self._grids, self._counts = grids, grids.prod(-1)
        index = torch.arange(patches)
        ends = self._counts.cumsum(0)
        self._image = (index[:, None] >= ends[None]).sum(1).clamp(0, grids.shape[0] - 1)
        self._height, self._width = grids[:, 1][self._image], grids[:, 2][self._image]
        self._start = (ends - self._counts)[self._image]
        within, area = index - self._start, (self._height * self._width).clamp(1)  # callers may pass any grids
        self._frame, within = within // area, within % area
        block, inner = within // self.unit, within % self.unit
        across = (self._width // merge).clamp(1)
        self._row = block // across * merge + inner // merge
        self._column = block % across * merge + inner % merge
        self.coordinates = torch.stack([self._row, self._column], -1)
        self.frames = self._start + self._frame * area  # the first patch of each patch's frame

    def windows(self, side: int) -> Tensor:
        """Return a number (patches) that identifies each window of `side` x `side` patches."""
        return self.frames + self._row // side * self._width + self._column // side

    def taps(self, side: int, mode: str, align_corners: bool) -> tuple[Tensor, Tensor]:
        """Return indices and weights (patches, taps) into a table of `side` x `side` learned positions."""
        axes = ((self._row, self._height), (self._column, self._width))
        (rows, down), (columns, along) = (
            vision_utils._interpolation_axis_taps_weights(index, size, side, mode, align_corners)
            for index, size in axes
        )
        taps = rows.shape[1] ** 2
        indices = (rows[:, :, None] * side + columns[:, None]).reshape(-1, taps)
        return indices, (down[:, :, None] * along[:, None]).reshape(-1, taps)

    def shifts(self) -> Tensor:
        """See `SHIFTS`: an image spans as many positions as its longer side has rows."""
        longest = torch.maximum(self._grids[:, 1], self._grids[:, 2]) // self._merge
        behind = (longest - self._counts // self.unit).cumsum(0)[self._image]
        advance = longest[self._image] - self._counts[self._image] // self.unit
        index = torch.arange(self._image.shape[0])
        before = behind - advance - (index - self._start) // self.unit
        found = [before + self._frame, before + self._row // self._merge, before + self._column // self._merge, behind]
        return torch.stack(found, -1)[:: self.unit]


def _attend_within_segments(visual: Any) -> None:
    """Replace segment lengths by per-patch segment numbers in all attention of an encoder."""
    AttentionInterface.register(_WITHIN_SEGMENTS, _within_segments)
    for part in visual.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = _WITHIN_SEGMENTS


def _within_segments(
    _: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, cu_seq_lens_q: Tensor, **__: Any
) -> tuple[Tensor, None]:
    mask = (cu_seq_lens_q[:, None] == cu_seq_lens_q[None])[None, None]
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return found.transpose(1, 2), None


_QWEN = MediaModel(reads=Patches, rows=_qwen_rows)
_QWEN_3_5 = replace(_QWEN, text=None)
MEDIA_MODELS: Mapping[str, MediaModel] = {
    "gemma3": MediaModel(reads=Images, rows=_gemma_rows, arguments=gemma3_arguments),
    "gemma4": MediaModel(reads=Patches, rows=_gemma4_rows, arguments=_gemma4_arguments),
    "idefics3": MediaModel(reads=ImagesOfTexts, rows=_idefics_rows, text="text_model"),
    "internvl": MediaModel(reads=Images, rows=_intern_rows),
    "llava": MediaModel(reads=Images, rows=_llava_rows),
    "mistral3": MediaModel(reads=Patches, rows=_mistral_rows, text=None),
    "qwen2_5_vl": _QWEN,
    "qwen2_audio": MediaModel(reads=MaskedSounds, rows=_qwen_audio_rows, token="audio_token_id"),
    "qwen2_vl": _QWEN,
    "qwen3_5": _QWEN_3_5,
    "qwen3_5_moe": _QWEN_3_5,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "smolvlm": MediaModel(reads=ImagesOfTexts, rows=_idefics_rows, text="text_model"),
    "voxtral": MediaModel(reads=Sounds, rows=_voxtral_rows, token="audio_token_id"),
}
