"""Encoders of patches of images of any sizes: the rows that replace tokens, as `captured_media` describes them.

Each function takes a model, patches (patches, values), and the (frames, rows, columns) of each image (images, 3).
"""

from __future__ import annotations

from typing import Any

import torch

from compiler.frontends.llm.captured_media import DEEP, Outputs
from compiler.frontends.llm.media_rows import FEATURES, SHIFTS
from compiler.frontends.llm.patch_positions import PatchPositions, attend_within_segments, merge_size

Tensor = torch.Tensor


def exaone_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of EXAONE 4.5, whose text has positions in one dimension."""
    return {FEATURES: qwen_rows(model, pixels, grids)[FEATURES]}


def gemma4_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of Gemma 4: means of blocks of patches, with attention within images."""
    tower = model.model.vision_tower
    patches = PatchPositions(grids, pixels.shape[0], merge_size(model.config))
    embedder, side = tower.patch_embedder, tower.config.patch_size
    # In the table of learned positions; callers may pass any grids.
    places = patches.coordinates.flip(-1)[None].clamp(0, embedder.position_embedding_size - 1)  # (x, y)
    values = _channels_last(pixels, side)[None]
    hidden = embedder(values, places, torch.zeros((1, pixels.shape[0]), dtype=torch.bool))
    mask = patches.mask()
    rotations = tower.encoder.rotary_emb(hidden, places)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, position_embeddings=rotations, attention_mask=mask, position_ids=places)
    pooled = hidden.reshape(-1, patches.unit, hidden.shape[-1]).mean(1) * hidden.shape[-1] ** 0.5
    if tower.config.standardize:
        pooled = (pooled - tower.std_bias) * tower.std_scale
    return {FEATURES: model.model.embed_vision(pooled)}


def glm_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of GLM-4.1V, 4.5V, 4.6V and GLM-OCR, with attention within image frames."""
    visual = model.model.visual
    attend_within_segments(visual)
    patches = PatchPositions(grids, pixels.shape[0], visual.spatial_merge_size)
    hidden = visual.patch_embed(pixels)
    if hasattr(visual, "embeddings"):  # GLM-OCR has rotary positions alone
        hidden = visual.post_conv_layernorm(hidden)
        hidden = hidden + patches.interpolated(visual.embeddings.position_embedding.weight, "bicubic")
    rotations = visual.rotary_pos_emb(hidden, patches.coordinates)
    for block in visual.blocks:
        hidden = block(hidden, cu_seqlens=patches.frames, max_seqlen=1, position_embeddings=rotations)
    blocks = visual.post_layernorm(hidden).unflatten(0, (-1, visual.spatial_merge_size, visual.spatial_merge_size))
    merged = visual.downsample(blocks.permute(0, 3, 1, 2)).flatten(1)
    return {FEATURES: visual.merger(merged), SHIFTS: patches.shifts()}


def lfm2_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of LFM2-VL (SigLIP 2's encoder), with attention within images or tiles."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    patches, embeddings = PatchPositions(grids, pixels.shape[0], merge_size(model.config)), tower.embeddings
    hidden = embeddings.patch_embedding(_channels_last(pixels, embeddings.patch_size))
    hidden = (hidden + patches.smoothed(embeddings.position_embedding.weight))[None]
    mask = patches.mask()
    for layer in tower.encoder.layers:
        hidden = layer(hidden, mask)
    merged = tower.post_layernorm(hidden).reshape(-1, patches.unit * hidden.shape[-1])
    if projector.use_layer_norm:
        merged = projector.layer_norm(merged)
    return {FEATURES: projector.linear_2(projector.act(projector.linear_1(merged)))}


def lfm3_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of LFM3-VL: convolutions over the patches of an image, and attention within it."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    attend_within_segments(tower)
    patches = PatchPositions(grids, pixels.shape[0], tower.spatial_merge_size)
    hidden = tower.embedding_norm(tower.patch_embed(pixels))
    rotations = tower.rotary_pos_emb(hidden, patches.coordinates)
    for layer in tower.layers:
        normalized = layer.operator_norm(hidden)
        if layer.is_attention_layer:
            mixed, _ = layer.self_attn(normalized, patches.frames, rotations, max_seqlen=1)
        else:
            before, after, values = layer.conv.in_proj(normalized).chunk(3, dim=-1)
            mixed = layer.conv.out_proj(after * patches.convolved(before * values, layer.conv.spatial_conv.weight))
        hidden = hidden + mixed
        hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
    return {FEATURES: projector(hidden)}


def lighton_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of LightOnOCR (Pixtral's encoder)."""
    patches = PatchPositions(grids, pixels.shape[0], merge_size(model.config))
    hidden = _pixtral_states(model.model.vision_encoder, patches, pixels)[-1]
    return {FEATURES: _pixtral_rows(model.model.vision_projection, patches, hidden)}


def llava_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of LLaVA-OneVision 1.5, with attention within images and to a class token of each, which come last here."""
    visual = model.model.visual
    attend_within_segments(visual)
    patches, classes = PatchPositions(grids, pixels.shape[0], visual.spatial_merge_size), visual.cls_embeddings
    angles = torch.cat([classes.class_pos_emb, classes.class_pos_emb], -1)
    rotations = tuple(
        torch.cat([each, own.expand(grids.shape[0], -1)])
        for each, own in zip(
            visual.rotary_pos_emb(pixels, patches.coordinates), (angles.cos(), angles.sin()), strict=True
        )
    )
    own = classes.class_embedding[None].expand(grids.shape[0], -1)
    hidden = visual.pre_layernorm(torch.cat([visual.patch_embed(pixels), own]))
    segments = torch.cat([patches.frames, patches.starts])
    for block in visual.blocks:
        hidden = block(hidden, segments, position_embeddings=rotations, max_seqlen=1)
    return {FEATURES: visual.merger(hidden[: pixels.shape[0]])}


def mistral_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of Mistral 3 (Pixtral's encoder)."""
    config = model.config
    patches = PatchPositions(grids, pixels.shape[0], merge_size(config))
    states = _pixtral_states(model.model.vision_tower, patches, pixels)
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    return {FEATURES: _pixtral_rows(model.model.multi_modal_projector, patches, torch.cat(chosen, -1))}


def paddle_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of PaddleOCR-VL, with attention within images."""
    tower, projector = model.model.visual.vision_model, model.model.projector
    attend_within_segments(tower)
    patches, embeddings = PatchPositions(grids, pixels.shape[0], merge_size(model.config)), tower.embeddings
    embedding = embeddings.patch_embedding
    hidden = pixels @ embedding.weight.flatten(1).T + embedding.bias
    hidden = hidden + patches.interpolated(embeddings.position_embedding.weight, "bilinear")
    rotations = tower.encoder.rotary_pos_emb(hidden, patches.coordinates)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, cu_seqlens=patches.frames, max_seqlen=1, position_embeddings=rotations)
    normalized = projector.pre_norm(tower.post_layernorm(hidden))
    merged = projector.linear_1(normalized.reshape(-1, patches.unit * normalized.shape[-1]))
    return {FEATURES: projector.linear_2(projector.act(merged)), SHIFTS: patches.shifts()}


def qwen_rows(model: Any, pixels: Tensor, grids: Tensor) -> Outputs:
    """Rows of Qwen2-VL, 2.5 and 3, with attention within image frames or windows of them."""
    visual = model.model.visual
    attend_within_segments(visual)
    patches = PatchPositions(grids, pixels.shape[0], visual.spatial_merge_size)
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


def _channels_last(pixels: Tensor, side: int) -> Tensor:
    """Reorder patches of (channels, rows, columns) to (rows, columns, channels)."""
    return pixels.reshape(-1, 3, side, side).permute(0, 2, 3, 1).flatten(1)


def _pixtral_states(tower: Any, patches: PatchPositions, pixels: Tensor) -> list[Tensor]:
    """Return the states (1, patches, width) before and after each layer, with attention within images."""
    states = [tower.ln_pre(pixels @ tower.patch_conv.weight.flatten(1).T)[None]]
    rotations, mask = tower.patch_positional_embedding(states[0], patches.coordinates), patches.mask()
    for layer in tower.transformer.layers:
        states.append(layer(states[-1], mask, position_embeddings=rotations))
    return states


def _pixtral_rows(projector: Any, patches: PatchPositions, hidden: Tensor) -> Tensor:
    """Merge blocks of patches (1, patches, width)."""
    normalized = projector.norm(hidden)
    blocks = normalized.reshape(-1, patches.unit, normalized.shape[-1]).transpose(1, 2).flatten(1)
    merged = projector.patch_merger.merging_layer(blocks)
    return projector.linear_2(projector.act(projector.linear_1(merged)))
