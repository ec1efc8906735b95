"""Small MONAI networks for images of two and three dimensions."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from tests.coverage.packages.model import Build, PackageModel

_FLAT, _SOLID = (2, 1, 64, 64), (2, 1, 32, 32, 32)
_LEVELS = {"channels": (8, 16, 32), "strides": (2, 2)}
_DIFFUSION = {"channels": (8, 16), "attention_levels": (False, True), "norm_num_groups": 4, "num_res_blocks": 1}
_TRANSFORMER = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 4}
_ENDS = {"in_channels": 1, "out_channels": 2}
_DYN = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (8, 16, 24)}

# (class, options, input shape); classes without `spatial_dims` in the options have no such option.
NETWORKS: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("AHNet", {"layers": (1, 1, 1, 1), "spatial_dims": 2, "psp_block_num": 2, "upsample_mode": "nearest"}, _FLAT),
    ("AttentionUnet", {"spatial_dims": 2, **_ENDS, **_LEVELS}, _FLAT),
    ("AttentionUnet", {"spatial_dims": 3, **_ENDS, **_LEVELS}, _SOLID),
    ("AutoEncoder", {"spatial_dims": 2, **_ENDS, "channels": (8, 16), "strides": (2, 2)}, _FLAT),
    ("AutoencoderKL", {"spatial_dims": 2, **_DIFFUSION}, _FLAT),
    ("BasicUNet", {"spatial_dims": 2, "features": (8, 8, 16, 16, 24, 8)}, _FLAT),
    ("BasicUNet", {"spatial_dims": 3, "features": (8, 8, 16, 16, 24, 8)}, _SOLID),
    ("BasicUNetPlusPlus", {"spatial_dims": 2, "features": (8, 8, 16, 16, 24, 8)}, _FLAT),
    ("Classifier", {"in_shape": (1, 64, 64), "classes": 3, **_LEVELS}, _FLAT),
    ("DenseNet", {"spatial_dims": 2, **_ENDS, "block_config": (2, 2)}, _FLAT),
    ("DenseNet", {"spatial_dims": 3, **_ENDS, "block_config": (2, 2)}, _SOLID),
    ("Discriminator", {"in_shape": (1, 64, 64), **_LEVELS}, _FLAT),
    ("DynUNet", {"spatial_dims": 2, **_ENDS, **_DYN}, _FLAT),
    ("DynUNet", {"spatial_dims": 3, **_ENDS, **_DYN}, _SOLID),
    ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1}, _FLAT),
    ("FlexibleUNet", {**_ENDS, "in_channels": 3, "backbone": "efficientnet-b0"}, (2, 3, 64, 64)),
    ("FullyConnectedNet", {"in_channels": 10, "out_channels": 3, "hidden_channels": (8, 16)}, (4, 10)),
    ("HighResNet", {"spatial_dims": 2, **_ENDS}, _FLAT),
    ("HighResNet", {"spatial_dims": 3, **_ENDS}, _SOLID),
    ("HoVerNet", {"mode": "fast", "in_channels": 3}, (2, 3, 256, 256)),
    ("LocalNet", {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 4, "extract_levels": (0, 1)}, _FLAT),
    ("MedNeXt", {"spatial_dims": 2, "init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1, 1)}, _FLAT),
    ("PatchDiscriminator", {"spatial_dims": 2, "channels": 8, "in_channels": 1}, _FLAT),
    ("Quicknat", {"num_classes": 4, "num_filters": 8}, _FLAT),
    ("RegUNet", {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 4, "depth": 2}, _FLAT),
    ("Regressor", {"in_shape": (1, 64, 64), "out_shape": (2,), **_LEVELS}, _FLAT),
    ("SEResNet50", {"spatial_dims": 2, "in_channels": 1, "layers": (1, 1, 1, 1)}, _FLAT),
    ("SEResNext50", {"spatial_dims": 2, "in_channels": 1, "layers": (1, 1, 1, 1)}, _FLAT),
    ("SegResNet", {"spatial_dims": 2, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, _FLAT),
    ("SegResNet", {"spatial_dims": 3, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, _SOLID),
    ("SegResNetDS", {"spatial_dims": 2, "init_filters": 8, "blocks_down": (1, 1, 1)}, _FLAT),
    ("SwinUNETR", {"spatial_dims": 2, **_ENDS, "depths": (1, 1, 1, 1), "feature_size": 12}, _FLAT),
    ("SwinUNETR", {"spatial_dims": 3, **_ENDS, "depths": (1, 1, 1, 1), "feature_size": 12}, _SOLID),
    ("UNETR", {"spatial_dims": 2, **_ENDS, "img_size": 64, "feature_size": 8, **_TRANSFORMER}, _FLAT),
    ("UNet", {"spatial_dims": 2, **_ENDS, **_LEVELS, "num_res_units": 2}, _FLAT),
    ("UNet", {"spatial_dims": 3, **_ENDS, **_LEVELS, "num_res_units": 2}, _SOLID),
    ("VNet", {"spatial_dims": 2, "act": "relu"}, _FLAT),
    ("VQVAE", {"spatial_dims": 2, **_ENDS, "channels": (8, 16), "num_res_layers": 1, "num_res_channels": (8, 16),
               "downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}, _FLAT),
    ("ViT", {"spatial_dims": 2, "in_channels": 1, "img_size": 64, "patch_size": 16, "num_layers": 2, **_TRANSFORMER},
     _FLAT),
    ("ViTAutoEnc", {"spatial_dims": 2, "in_channels": 1, "img_size": 64, "patch_size": 16, "num_layers": 2,
                    **_TRANSFORMER}, _FLAT),
    ("VoxelMorphUNet", {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 8, "channels": (8, 8, 8, 8),
                        "final_conv_channels": (8, 8)}, (2, 2, 64, 64)),
)  # fmt: skip


def monai_models() -> Iterator[PackageModel]:
    """Each network with dynamic batch, height, width and depth."""
    for name, options, shape in NETWORKS:
        axes = ((0, 0, 1), *((0, axis, 32) for axis in range(2, len(shape))))
        yield PackageModel(f"{name}/{len(shape) - 2}d", _monai(name, options, shape), axes)


def _monai(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        return getattr(importlib.import_module("monai.networks.nets"), name)(**options), (torch.randn(shape),)

    return build
