"""Models of dynamic shape, as users export them: batch sizes, sequence lengths, image heights and widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._models import Task, cache_folder, count_operations
from benchmarks.catalog import CATALOG

Array = np.ndarray
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class OpenModel:
    """A model with dynamic shapes, and the sizes at which it runs.

    Attributes:
        load: returns a `torch.nn.Module`, or the path of an ONNX file with dynamic shapes.
        shapes: shapes of each input, symbols for dynamic dimensions.
        sizes: values of the symbols, one run each.
        inputs: creates random inputs for such values.
    """

    name: str
    load: Callable[[], Any]
    shapes: Mapping[str, tuple[int | str, ...]]
    sizes: tuple[Sizes, ...]
    inputs: Callable[[np.random.Generator, Sizes], dict[str, Array]]

    def path(self) -> Path:
        """The ONNX file; a module is exported once and kept."""
        source = self.load()
        return Path(source) if isinstance(source, str | Path) else self._exported(source)

    def task(self, path: Path, sizes: Sizes) -> Task:
        """Return the comparison at these sizes; its `shapes` are fixed."""
        inputs = self.inputs(np.random.default_rng(0), sizes)
        name = "-".join([self.name, "open", *map(str, sizes.values())])
        arrays = cache_folder() / f"{name}.npz"
        np.savez(arrays, **inputs)  # type: ignore[arg-type]
        shapes = {key: array.shape for key, array in inputs.items()}
        return Task(name, path, arrays, shapes, count_operations(path, inputs))

    def _exported(self, module: Any) -> Path:
        path = cache_folder() / f"{self.name}-open.onnx"
        if path.exists():
            return path
        import torch

        symbols = {each for shape in self.shapes.values() for each in shape if isinstance(each, str)}
        dims = dict.fromkeys(symbols, torch.export.Dim.DYNAMIC)
        example = self.inputs(np.random.default_rng(0), {symbol: 64 if symbol != "batch" else 2 for symbol in symbols})
        open_axes = tuple(
            {axis: dims[each] for axis, each in enumerate(shape) if isinstance(each, str)}
            for shape in self.shapes.values()
        )
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(array) for array in example.values()),
            input_names=list(self.shapes),
            dynamic_shapes=open_axes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
        return path


def _image(generator: np.random.Generator, sizes: Sizes) -> dict[str, Array]:
    shape = (sizes["batch"], 3, sizes.get("height", 224), sizes.get("width", 224))
    return {"x": generator.standard_normal(shape, dtype=np.float32)}


def _of_batch(name: str, batches: tuple[int, ...] = (1, 4)) -> OpenModel:
    shapes = {"x": ("batch", 3, 224, 224)}
    return OpenModel(f"{name}-batch", CATALOG[name].load, shapes, tuple({"batch": batch} for batch in batches), _image)


def _of_image(name: str, load: Callable[[], Any], sizes: tuple[tuple[int, int, int], ...]) -> OpenModel:
    values = tuple({"batch": batch, "height": height, "width": width} for batch, height, width in sizes)
    return OpenModel(f"{name}-image", load, {"x": ("batch", 3, "height", "width")}, values, _image)


def _sentences(generator: np.random.Generator, sizes: Sizes) -> dict[str, Array]:
    return CATALOG["minilm-int8"].inputs(generator, sizes)


def _segmentation() -> Any:
    import torch
    import torchvision

    class Head(torch.nn.Module):
        """The result without its dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)

        def forward(self, x: object) -> Any:
            return self.net(x)["out"]

    torch.manual_seed(0)
    return Head().eval()


def _unet() -> Any:
    """U-Net (Ronneberger et al., arXiv:1505.04597) of three levels, with padded and transposed convolutions."""
    import torch
    from torch import nn

    def twice(inner: int, outer: int) -> nn.Module:
        first, second = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        return nn.Sequential(first, nn.BatchNorm2d(outer), nn.ReLU(), second, nn.BatchNorm2d(outer), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([twice(3, 32), twice(32, 64), twice(64, 128)])
            self.bottom = twice(128, 256)
            self.up = nn.ModuleList([nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in (128, 64, 32)])
            self.join = nn.ModuleList([twice(2 * n, n) for n in (128, 64, 32)])
            self.head = nn.Conv2d(32, 4, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for level in self.down:
                x = level(x)
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
            x = self.bottom(x)
            for up, join in zip(self.up, self.join, strict=True):
                x = join(torch.cat([up(x), skips.pop()], 1))
            return self.head(x)

    torch.manual_seed(0)
    return UNet().eval()


_BATCHED_NETS = ("resnet18", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16")
_IMAGE_SIZES = ((1, 224, 224), (1, 320, 256), (2, 123, 161))

OPEN_MODELS: dict[str, OpenModel] = {
    model.name: model
    for model in (
        *(_of_batch(name) for name in _BATCHED_NETS),
        *(_of_image(name, CATALOG[name].load, _IMAGE_SIZES) for name in _BATCHED_NETS[:4]),
        _of_image("lraspp", _segmentation, _IMAGE_SIZES),
        _of_image("unet", _unet, ((1, 128, 128), (1, 224, 160), (2, 72, 104))),
        _of_image("pnet", CATALOG["pnet"].load, ((1, 96, 96), (1, 240, 320), (3, 37, 53))),
        OpenModel(
            "minilm",
            CATALOG["minilm-128"].load,
            dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("batch", "sequence")),
            tuple({"batch": batch, "sequence": length} for batch, length in ((1, 16), (1, 128), (1, 509), (4, 37))),
            _sentences,
        ),
        OpenModel(
            "silero",
            CATALOG["silero-vad"].load,
            CATALOG["silero-vad"].shapes or {},
            ({"batch": 1}, {"batch": 8}),
            CATALOG["silero-vad"].inputs,
        ),
    )
}
