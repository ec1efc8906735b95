"""Small networks of Python packages, of random weights: one for each family that a package has.

Each is a function that makes a module and example inputs, so that listing them builds nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SMALL = ("test_", "atto", "femto", "pico", "nano", "tiny", "xxs", "_s0", "_b0", "small", "mini", "18", "050", "s16")


@dataclass(frozen=True)
class PackageModel:
    """A network and how it is called.

    Attributes:
        build: makes the module and its positional inputs.
        dynamic: the axes of the first input that are tried together as dynamic dimensions, with the number that each
            is made a multiple of; fewer are tried where `torch.export` refuses.
    """

    name: str
    build: Callable[[], tuple[Any, tuple[Any, ...]]]
    dynamic: tuple[tuple[int, int], ...] = ((0, 1),)


def _smallest(names: list[str]) -> str:
    """The name that promises the smallest network."""
    return min(names, key=lambda name: (next((i for i, s in enumerate(SMALL) if s in name), len(SMALL)), name))


def timm_models() -> Iterator[PackageModel]:
    """One network of each module of timm, at batch, height and width."""
    timm = importlib.import_module("timm")
    for module in sorted(timm.list_modules()):
        names = timm.list_models(module=module)
        if names:
            yield PackageModel(f"{module}/{_smallest(names)}", _timm(_smallest(names)), ((0, 1), (2, 32), (3, 32)))


def _timm(name: str) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        timm = importlib.import_module("timm")
        net = timm.create_model(name, pretrained=False, num_classes=10)
        channels, height, width = net.pretrained_cfg.get("input_size", (3, 224, 224))
        size = (96, 96) if not net.pretrained_cfg.get("fixed_input_size") and "vit" not in name else (height, width)
        return net, (torch.randn(2, channels, *size),)

    return build


def torchvision_models() -> Iterator[PackageModel]:
    """The smallest classifier, segmenter and video network of each family of torchvision."""
    models = importlib.import_module("torchvision.models")
    families: dict[str, list[str]] = {}
    for name in models.list_models():
        if "detection" not in models.get_model_builder(name).__module__ and "raft" not in name:
            families.setdefault(models.get_model_builder(name).__module__, []).append(name)
    for names in families.values():
        name = min(names, key=lambda each: (len(each), each))
        yield PackageModel(name, _torchvision(name), ((0, 1), (2, 32), (3, 32)))


def _torchvision(name: str) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        from torchvision import models

        module = models.get_model_builder(name).__module__
        kwargs = {"weights_backbone": None} if "segmentation" in module else {}
        size = (1, 3, 8, 112, 112) if "video" in module else (2, 3, 224, 224)
        net = models.get_model(name, weights=None, **kwargs)
        return _dictionary_values(net) if "segmentation" in module else net, (torch.randn(size),)

    return build


def _dictionary_values(net: Any) -> Any:
    """A module that returns the tensors of a network which returns a dictionary."""
    import torch

    class Tensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return tuple(self.net(x).values())

    return Tensors()


def transformers_models() -> Iterator[PackageModel]:
    """The base model of each type of transformers whose config takes the usual names of sizes, of three layers."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for kind in sorted(auto.MODEL_MAPPING_NAMES):
        yield PackageModel(kind, _transformers(kind), ((0, 1), (1, 1)))


_SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "dim", "n_embd"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head"), 4),
    **dict.fromkeys(("vocab_size",), 120),
    **dict.fromkeys(("max_position_embeddings",), 64),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim",), 8),
    **dict.fromkeys(("pad_token_id",), 0),
}


def _transformers(kind: str) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        import transformers

        default = transformers.AutoConfig.for_model(kind)
        known = {name: size for name, size in _SIZES.items() if hasattr(default, name)}
        config = transformers.AutoConfig.for_model(kind, **known)
        net = transformers.AutoModel.from_config(config)
        if sum(each.numel() for each in net.parameters()) > 5e7:
            raise ValueError("its config does not take the usual names of sizes")
        if net.main_input_name != "input_ids":
            raise ValueError(f"its main input is {net.main_input_name}")
        return _first_output(net), (torch.randint(1, 100, (2, 7)),)

    return build


def _first_output(net: Any) -> Any:
    """A module that returns the first output of a model of transformers."""
    import torch

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return self.net(x, use_cache=False, return_dict=False)[0] if _takes_cache(net) else self.net(x)[0]

    return First()


def _takes_cache(net: Any) -> bool:
    return hasattr(net.config, "use_cache")


def segmentation_models() -> Iterator[PackageModel]:
    """Each decoder of segmentation_models_pytorch on a small encoder."""
    package = importlib.import_module("segmentation_models_pytorch")
    for name in sorted(package.MODEL_ARCHITECTURES_MAPPING):
        yield PackageModel(name, _segmentation(name), ((0, 1), (2, 32), (3, 32)))


def _segmentation(name: str) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch

        package = importlib.import_module("segmentation_models_pytorch")
        encoder = {"segformer": "mit_b0", "dpt": "tu-vit_tiny_patch16_224.augreg_in21k"}.get(name, "resnet18")
        net = package.create_model(name, encoder_name=encoder, encoder_weights=None)
        return net, (torch.randn(1, 3, 64, 64),)

    return build


PACKAGES: dict[str, Callable[[], Iterator[PackageModel]]] = {
    "timm": timm_models,
    "torchvision": torchvision_models,
    "transformers": transformers_models,
    "segmentation_models_pytorch": segmentation_models,
}
