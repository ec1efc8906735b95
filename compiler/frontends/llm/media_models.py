"""The models of transformers that read images or sounds, by type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from compiler.frontends.llm.captured_media import (
    KEPT,
    Images,
    ImagesOfTexts,
    MaskedSounds,
    MediaModel,
    Outputs,
    PackedTiles,
    Patches,
    Sounds,
)
from compiler.frontends.llm.gemma_masks import gemma3_arguments, gemma4_arguments
from compiler.frontends.llm.media_rows import FEATURES
from compiler.frontends.llm.patch_encoders import (
    exaone_rows,
    gemma4_rows,
    glm_rows,
    lfm2_rows,
    lfm3_rows,
    lighton_rows,
    llava_rows,
    mistral_rows,
    paddle_rows,
    qwen_rows,
)

Tensor = torch.Tensor


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


def _idefics_rows(model: Any, images: Tensor) -> Outputs:
    side = images.shape[-1] // model.config.vision_config.patch_size
    mask = torch.ones((images.shape[0], side, side), dtype=torch.bool)
    found = model.model.vision_model(pixel_values=images, patch_attention_mask=mask)
    return {FEATURES: model.model.connector(found.last_hidden_state)}


def _projected_rows(model: Any, images: Tensor) -> Outputs:
    names = ("vision_feature_layer", "vision_feature_select_strategy")
    given = {name: getattr(model.config, name) for name in names if hasattr(model.config, name)}
    return {FEATURES: model.model.get_image_features(images, **given).pooler_output}


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


_BESIDE_TEXT = MediaModel(reads=Images, rows=_projected_rows, text=None)
_GLM = MediaModel(reads=Patches, rows=glm_rows)
_PACKED = MediaModel(reads=PackedTiles, rows=_llava_rows, text=None)
_QWEN = MediaModel(reads=Patches, rows=qwen_rows)
_QWEN_3_5 = replace(_QWEN, text=None)
MEDIA_MODELS: Mapping[str, MediaModel] = {
    "aya_vision": _BESIDE_TEXT,
    "cohere2_vision": _BESIDE_TEXT,
    "deepseek_vl": _BESIDE_TEXT,
    "exaone4_5": MediaModel(reads=Patches, rows=exaone_rows, text=None),
    "gemma3": MediaModel(reads=Images, rows=_gemma_rows, arguments=gemma3_arguments),
    "gemma4": MediaModel(reads=Patches, rows=gemma4_rows, arguments=gemma4_arguments),
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm_ocr": _GLM,
    "got_ocr2": _BESIDE_TEXT,
    "idefics3": MediaModel(reads=ImagesOfTexts, rows=_idefics_rows, text="text_model"),
    "internvl": MediaModel(reads=Images, rows=_projected_rows),
    "janus": _BESIDE_TEXT,
    "lfm2_vl": MediaModel(reads=Patches, rows=lfm2_rows, text=None),
    "lfm3_vl": MediaModel(reads=Patches, rows=lfm3_rows, text=None),
    "lighton_ocr": MediaModel(reads=Patches, rows=lighton_rows, text=None),
    "llava": MediaModel(reads=Images, rows=_llava_rows),
    "llava_next": _PACKED,
    "llava_next_video": _PACKED,
    "llava_onevision": _PACKED,
    "llava_onevision1_5": MediaModel(reads=Patches, rows=llava_rows, text=None),
    "mistral3": MediaModel(reads=Patches, rows=mistral_rows, text=None),
    "paddleocr_vl": MediaModel(reads=Patches, rows=paddle_rows),
    "qianfan_ocr": _BESIDE_TEXT,
    "qwen2_5_vl": _QWEN,
    "qwen2_audio": MediaModel(reads=MaskedSounds, rows=_qwen_audio_rows, token="audio_token_id"),
    "qwen2_vl": _QWEN,
    "qwen3_5": _QWEN_3_5,
    "qwen3_5_moe": _QWEN_3_5,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "smolvlm": MediaModel(reads=ImagesOfTexts, rows=_idefics_rows, text="text_model"),
    "vipllava": _BESIDE_TEXT,
    "voxtral": MediaModel(reads=Sounds, rows=_voxtral_rows, token="audio_token_id"),
}
