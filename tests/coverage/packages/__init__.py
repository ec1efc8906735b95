"""Small networks of Python packages with random weights, and PyTorch's operators; the sweep compares with PyTorch.

Each network is a function that returns a module and example inputs, so that listing them builds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.coverage.packages.audio import torchaudio_models
from tests.coverage.packages.diffusion import diffusers_models
from tests.coverage.packages.graph_networks import geometric_models
from tests.coverage.packages.kornia_functions import kornia_models
from tests.coverage.packages.language import transformers_models
from tests.coverage.packages.medical import monai_models
from tests.coverage.packages.model import PackageModel
from tests.coverage.packages.operators import torch_operators
from tests.coverage.packages.vision import (
    segmentation_models,
    timm_models,
    torchvision_models,
)

PACKAGES: dict[str, Callable[[], Iterator[PackageModel]]] = {
    "diffusers": diffusers_models,
    "kornia": kornia_models,
    "monai": monai_models,
    "segmentation_models_pytorch": segmentation_models,
    "timm": timm_models,
    "torch": torch_operators,
    "torch_geometric": geometric_models,
    "torchaudio": torchaudio_models,
    "torchvision": torchvision_models,
    "transformers": transformers_models,
}
