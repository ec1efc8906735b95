"""Small denoisers and autoencoders of diffusers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from tests.coverage.packages.model import Build, PackageModel, with_call

_STEP: tuple[int, ...] = ()  # a scalar: the diffusion timestep
_LATENTS, _TEXT = (2, 4, 16, 16), (2, 6, 16)
_BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 16}
_UNET = {**_BLOCKS, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8}  # fmt: skip
_CROSS = {**_BLOCKS, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16,
          "attention_head_dim": 8}  # fmt: skip
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}

# (class, options, inputs by name in call order). Inputs named *ids and *timestep are integers.
NETWORKS: tuple[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]], ...] = (
    ("UNet2DModel", {**_UNET, "in_channels": 4, "out_channels": 4}, {"sample": _LATENTS, "timestep": _STEP}),
    ("UNet2DConditionModel", {**_CROSS, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
     {"sample": _LATENTS, "timestep": _STEP, "encoder_hidden_states": _TEXT}),
    ("UNet3DConditionModel", {**_BLOCKS, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
                              "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "cross_attention_dim": 16,
                              "attention_head_dim": 8},
     {"sample": (1, 4, 3, 16, 16), "timestep": _STEP, "encoder_hidden_states": (1, 6, 16)}),
    ("AutoencoderKL", {**_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2,
                       "up_block_types": ("UpDecoderBlock2D",) * 2}, {"sample": (2, 3, 32, 32)}),
    ("AsymmetricAutoencoderKL", {"down_block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
                                 "layers_per_down_block": 1, "up_block_out_channels": (16, 32),
                                 "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_up_block": 1,
                                 "norm_num_groups": 4}, {"sample": (2, 3, 32, 32)}),
    ("AutoencoderTiny", {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
     {"sample": (2, 3, 32, 32)}),
    ("AutoencoderDC", {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16),
                       "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
                       "encoder_block_types": ("ResBlock", "EfficientViTBlock"), "attention_head_dim": 8,
                       "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "latent_channels": 4,
                       "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
                       "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}, {"sample": (2, 3, 32, 32)}),
    ("AutoencoderOobleck", {"encoder_hidden_size": 8, "decoder_channels": 8, "decoder_input_channels": 4,
                            "downsampling_ratios": [2, 4], "channel_multiples": [1, 2]}, {"sample": (2, 2, 128)}),
    ("VQModel", {**_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
                 "up_block_types": ("UpDecoderBlock2D",) * 2}, {"sample": (2, 3, 32, 32)}),
    ("ControlNetModel", {"block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1,
                         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16,
                         "attention_head_dim": 8, "conditioning_embedding_out_channels": (8, 16)},
     {"sample": _LATENTS, "timestep": _STEP, "encoder_hidden_states": _TEXT, "controlnet_cond": (2, 3, 32, 32)}),
    ("DiTTransformer2DModel", {**_HEADS, "in_channels": 4, "sample_size": 16, "norm_num_groups": 4},
     {"hidden_states": _LATENTS, "timestep": (2,), "class_labels": (2,)}),
    ("PixArtTransformer2DModel", {**_HEADS, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 16,
                                  "use_additional_conditions": False, "norm_num_groups": 4},
     {"hidden_states": _LATENTS, "encoder_hidden_states": _TEXT, "timestep": (2,)}),
    ("SD3Transformer2DModel", {**_HEADS, "sample_size": 16, "in_channels": 4, "out_channels": 4,
                               "pos_embed_max_size": 32, "joint_attention_dim": 16, "caption_projection_dim": 16,
                               "pooled_projection_dim": 16},
     {"hidden_states": _LATENTS, "encoder_hidden_states": _TEXT, "pooled_projections": (2, 16), "timestep": (2,)}),
    ("SanaTransformer2DModel", {**_HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
                                "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16,
                                "sample_size": 16},
     {"hidden_states": _LATENTS, "encoder_hidden_states": _TEXT, "timestep": (2,)}),
    ("AuraFlowTransformer2DModel", {"sample_size": 16, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
                                    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
                                    "caption_projection_dim": 16, "pos_embed_max_size": 256},
     {"hidden_states": _LATENTS, "encoder_hidden_states": _TEXT, "timestep": (2,)}),
    ("FluxTransformer2DModel", {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                                "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16,
                                "axes_dims_rope": (4, 4, 8)},
     {"hidden_states": (2, 16, 4), "encoder_hidden_states": _TEXT, "pooled_projections": (2, 16), "timestep": (2,),
      "img_ids": (16, 3), "txt_ids": (6, 3)}),
    ("LTXVideoTransformer3DModel", {**_HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16,
                                    "caption_channels": 16},
     {"hidden_states": (2, 32, 4), "encoder_hidden_states": _TEXT, "timestep": (2,), "encoder_attention_mask": (2, 6)}),
    ("WanTransformer3DModel", {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16,
                               "ffn_dim": 32, "cross_attn_norm": True, "attention_head_dim": 12},
     {"hidden_states": (2, 4, 2, 16, 16), "timestep": (2,), "encoder_hidden_states": _TEXT}),
    ("CogVideoXTransformer3DModel", {**_HEADS, "in_channels": 4, "out_channels": 4, "text_embed_dim": 16,
                                     "time_embed_dim": 8, "sample_width": 16, "sample_height": 16, "sample_frames": 9,
                                     "max_text_seq_length": 6},
     {"hidden_states": (1, 3, 4, 16, 16), "encoder_hidden_states": (1, 6, 16), "timestep": (1,)}),
    ("Transformer2DModel", {**_HEADS, "in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 16},
     {"hidden_states": (2, 16, 8, 8), "encoder_hidden_states": _TEXT}),
    ("TransformerTemporalModel", {**_HEADS, "in_channels": 16, "norm_num_groups": 4},
     {"hidden_states": (4, 16, 8, 8)}),
    ("HunyuanDiT2DModel", {**_HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 16, "hidden_size": 16,
                           "cross_attention_dim": 16, "cross_attention_dim_t5": 24, "pooled_projection_dim": 16,
                           "text_len": 6, "text_len_t5": 5, "use_style_cond_and_image_meta_size": False},
     {"hidden_states": _LATENTS, "encoder_hidden_states": _TEXT, "encoder_hidden_states_t5": (2, 5, 24),
      "text_embedding_mask": (2, 6), "text_embedding_mask_t5": (2, 5), "timestep": (2,)}),
    ("PriorTransformer", {**_HEADS, "embedding_dim": 16, "num_embeddings": 6, "additional_embeddings": 4},
     {"hidden_states": (2, 16), "timestep": (2,), "proj_embedding": (2, 16), "encoder_hidden_states": _TEXT,
      "attention_mask": (2, 6)}),
    ("PriorTransformer", {**_HEADS, "embedding_dim": 16, "num_embeddings": 3, "additional_embeddings": 0,
                          "added_emb_type": None, "encoder_hid_proj_type": None, "norm_in_type": "layer",
                          "embedding_proj_norm_type": "layer", "embedding_proj_dim": 16, "time_embed_dim": 16,
                          "time_embed_act_fn": "gelu", "clip_embed_dim": 32},
     {"hidden_states": (2, 16), "timestep": (2,), "proj_embedding": (2, 16)}),
    ("StableCascadeUNet", {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8,
                           "conditioning_dim": 16, "block_out_channels": (16, 32), "num_attention_heads": (2, 2),
                           "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
                           "clip_text_in_channels": 16, "clip_text_pooled_in_channels": 16,
                           "clip_image_in_channels": 16, "switch_level": (False,)},
     {"sample": _LATENTS, "timestep_ratio": (2,), "clip_text_pooled": (2, 1, 16), "clip_text": _TEXT,
      "clip_img": (2, 1, 16)}),
    ("ChromaTransformer2DModel", {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                                  "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8),
                                  "approximator_num_channels": 8, "approximator_hidden_dim": 16,
                                  "approximator_layers": 1},
     {"hidden_states": (2, 16, 4), "encoder_hidden_states": _TEXT, "timestep": (2,), "img_ids": (16, 3),
      "txt_ids": (6, 3)}),
    ("MochiTransformer3DModel", {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
                                 "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 16,
                                 "time_embed_dim": 4, "max_sequence_length": 6},
     {"hidden_states": (2, 4, 2, 16, 16), "encoder_hidden_states": _TEXT, "timestep": (2,),
      "encoder_attention_mask": (2, 6)}),
    ("HunyuanVideoTransformer3DModel", {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2,
                                        "attention_head_dim": 10, "num_layers": 1, "num_single_layers": 1,
                                        "num_refiner_layers": 1, "text_embed_dim": 16, "pooled_projection_dim": 8,
                                        "rope_axes_dim": (2, 4, 4), "guidance_embeds": False},
     {"hidden_states": (2, 4, 2, 16, 16), "timestep": (2,), "encoder_hidden_states": _TEXT,
      "encoder_attention_mask": (2, 6), "pooled_projections": (2, 8)}),
    ("AllegroTransformer3DModel", {**_HEADS, "cross_attention_dim": 24, "attention_head_dim": 12, "sample_height": 16,
                                   "sample_width": 16, "sample_frames": 2, "caption_channels": 16},
     {"hidden_states": (2, 4, 2, 16, 16), "encoder_hidden_states": (2, 1, 6, 16), "timestep": (2,)}),
    ("CogView3PlusTransformer2DModel", {**_HEADS, "in_channels": 4, "out_channels": 4, "text_embed_dim": 16,
                                        "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 16,
                                        "sample_size": 16},
     {"hidden_states": _LATENTS, "encoder_hidden_states": _TEXT, "timestep": (2,), "original_size": (2, 2),
      "target_size": (2, 2), "crop_coords": (2, 2)}),
    ("UNetSpatioTemporalConditionModel", {"in_channels": 4, "down_block_types": (
        "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), "up_block_types": (
        "UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "block_out_channels": (32, 64),
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24, "layers_per_block": 1,
        "cross_attention_dim": 16, "num_attention_heads": (2, 4), "sample_size": 16},
     {"sample": (2, 3, 4, 16, 16), "timestep": _STEP, "encoder_hidden_states": (2, 1, 16), "added_time_ids": (2, 3)}),
)  # fmt: skip

_EXTRA: dict[str, dict[str, Any]] = {  # arguments that are not tensors
    "LTXVideoTransformer3DModel": {"num_frames": 2, "height": 4, "width": 4},
    "HunyuanDiT2DModel": {"image_rotary_emb": None},
}


def diffusers_models() -> Iterator[PackageModel]:
    """Each network with dynamic batch and, for images, dynamic height and width."""
    for name, options, inputs in NETWORKS:
        first, *others = inputs.values()
        tied = tuple((place + 1, 0, 0) for place, shape in enumerate(others) if shape[:1] == first[:1])
        image = len(first) in (4, 5) and name != "ControlNetModel"
        axes = ((0, 0, 1), *((0, axis, 8) for axis in range(len(first) - 2, len(first)) if image))
        yield PackageModel(name, _diffusers(name, options, inputs), axes, tied)


def _diffusers(name: str, options: dict[str, Any], inputs: dict[str, tuple[int, ...]]) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        net = getattr(importlib.import_module("diffusers"), name)(**options)
        extra = _EXTRA.get(name, {})

        def call(net: Any, *given: Any) -> Any:
            return net(**dict(zip(inputs, given, strict=True)), **extra, return_dict=False)

        return with_call(net, call), tuple(_value(f"{name}.{each}", shape) for each, shape in inputs.items())

    return build


def _value(name: str, shape: tuple[int, ...]) -> Any:
    import torch

    network, name = name.split(".")
    if name.startswith("timestep"):
        times = torch.randint(0, 900, shape)
        return times.float() if network == "HunyuanDiT2DModel" or name == "timestep_ratio" else times
    if name in ("class_labels", "input_ids"):
        return torch.randint(0, 9, shape)
    if name.endswith("mask") or "_mask_" in name:
        return torch.ones(shape)
    return torch.randn(shape)
