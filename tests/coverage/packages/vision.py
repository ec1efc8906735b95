"""Networks of timm, torchvision and segmentation_models_pytorch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from tests.coverage.packages.model import IMAGE, Build, PackageModel, draw_weights, with_call

SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "tiny",
    "xxs",
    "_s0",
    "_b0",
    "small",
    "mini",
    "18",
    "050",
    "s16",
    "x0_5",
)
# Options for a small network or for any image size; the first that its code accepts is used.
_SMALLER: tuple[dict[str, Any], ...] = (
    {"depth": 2, "dynamic_img_size": True},
    {"depth": 2},
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"block_config": (1, 1, 1, 1)},
    {"k_sec": (1, 1, 1, 1)},
    {},
)


def _smallest(names: list[str]) -> str:
    """The name that suggests the smallest network."""
    return min(names, key=lambda name: (next((i for i, s in enumerate(SMALL) if s in name), len(SMALL)), name))


def timm_models() -> Iterator[PackageModel]:
    """One network of each timm module, with dynamic batch, height and width."""
    timm = importlib.import_module("timm")
    for module in sorted(timm.list_modules()):
        names = timm.list_models(module=module)
        if names:
            yield PackageModel(f"{module}/{_smallest(names)}", _timm(_smallest(names)), IMAGE)


def _timm(name: str) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        net = _smaller(name)
        draw_weights(net)
        channels, height, width = net.pretrained_cfg.get("input_size", (3, 224, 224))
        size = (96, 96) if not net.pretrained_cfg.get("fixed_input_size") and "vit" not in name else (height, width)
        return net, (torch.randn(2, channels, *size),)

    return build


def _smaller(name: str) -> Any:
    """The network with the first options that it accepts."""
    timm = importlib.import_module("timm")
    for options in _SMALLER[:-1]:
        try:
            return timm.create_model(name, pretrained=False, num_classes=10, **options)
        except Exception:  # networks raise anything for unsupported options
            continue
    return timm.create_model(name, pretrained=False, num_classes=10, **_SMALLER[-1])


def torchvision_models() -> Iterator[PackageModel]:
    """The smallest classifier, segmenter and video network of each torchvision family."""
    models = importlib.import_module("torchvision.models")
    families: dict[str, list[str]] = {}
    for name in models.list_models():
        if "detection" not in models.get_model_builder(name).__module__ and "raft" not in name:
            families.setdefault(models.get_model_builder(name).__module__, []).append(name)
    for names in families.values():
        name = _smallest(names)
        video = "video" in models.get_model_builder(name).__module__
        yield PackageModel(name, _torchvision(name), _VIDEO if video else IMAGE)
    both = ((1, 0, 0), (1, 2, 1), (1, 3, 2))
    yield PackageModel("raft_small", _optical_flow, ((0, 0, 1), (0, 2, 64), (0, 3, 64)), both)
    for name in _DETECTORS:
        yield PackageModel(name, _detector(name), ((0, 2, 32), (0, 3, 32)))
        yield PackageModel(f"{name}/boxes", _boxes(name), ((0, 1, 32), (0, 2, 32)))


_VIDEO = ((0, 0, 1), (0, 2, 8), (0, 3, 32), (0, 4, 32))
_DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)


def _optical_flow() -> tuple[Any, tuple[Any, ...]]:
    """Two steps on two images of 128 x 128, the smallest that RAFT accepts."""
    import torch
    from torchvision import models

    net = models.get_model("raft_small", weights=None)
    images = tuple(torch.rand(1, 3, 128, 128) * 2 - 1 for _ in range(2))
    return with_call(net, lambda net, first, second: net(first, second, num_flow_updates=2)[-1]), images


def _detector(name: str) -> Build:
    """A detector up to the heads' outputs on the feature pyramid, before boxes are selected by value."""

    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        from torchvision import models

        net = models.get_model(name, weights=None, weights_backbone=None)

        def call(net: Any, image: Any) -> Any:
            levels = list(net.backbone(image).values())
            found = (net.rpn.head if hasattr(net, "rpn") else net.head)(levels)
            tensors = list(found.values()) if isinstance(found, dict) else [each for some in found for each in some]
            return torch.cat([each.flatten() for each in tensors])

        return with_call(net, call), (torch.randn(1, 3, 160, 160),)

    return build


def _boxes(name: str) -> Build:
    """The whole detector on one image of fixed size, with box selection."""

    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        from torchvision import models

        sizes = {} if name.startswith("ssd") else {"min_size": 160, "max_size": 320}
        net = models.get_model(name, weights=None, weights_backbone=None, **sizes)
        return with_call(net, lambda net, image: net([image])[0]["boxes"]), (torch.rand(3, 160, 192),)

    return build


def _torchvision(name: str) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        from torchvision import models

        module = models.get_model_builder(name).__module__
        kwargs = {"weights_backbone": None} if "segmentation" in module else {}
        size = (2, 3, 8, 112, 112) if "video" in module else (2, 3, 224, 224)
        net = models.get_model(name, weights=None, **kwargs)
        return with_call(net, lambda net, x: net(x)) if "segmentation" in module else net, (torch.randn(size),)

    return build


def segmentation_models() -> Iterator[PackageModel]:
    """Each decoder of segmentation_models_pytorch with a small encoder."""
    package = importlib.import_module("segmentation_models_pytorch")
    for name in sorted(package.MODEL_ARCHITECTURES_MAPPING):
        yield PackageModel(name, _segmentation(name), IMAGE)
    for encoder in _ENCODERS:
        yield PackageModel(f"unet/{encoder}", _segmentation("unet", encoder), IMAGE)


_ENCODERS = (  # smallest per family
    "densenet121",
    "dpn68",
    "efficientnet-b0",
    "inceptionresnetv2",
    "inceptionv4",
    "mit_b0",
    "mobilenet_v2",
    "mobileone_s0",
    "resnet34",
    "resnext50_32x4d",
    "se_resnet50",
    "timm-efficientnet-b0",
    "timm-skresnet18",
    "timm-tf_efficientnet_lite0",
    "tu-convnext_atto",
    "tu-resnest14d",
    "vgg11_bn",
    "xception",
)


def _segmentation(name: str, encoder: str = "") -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        package = importlib.import_module("segmentation_models_pytorch")
        usual = {"segformer": "mit_b0", "dpt": "tu-vit_tiny_patch16_224.augreg_in21k"}.get(name, "resnet18")
        options = {"dynamic_img_size": True} if name == "dpt" else {}
        net = package.create_model(name, encoder_name=encoder or usual, encoder_weights=None, **options)
        return net, (torch.randn(2, 3, 64, 64),)

    return build
