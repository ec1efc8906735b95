"""Tiles and their rows are those of transformers' LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compiler.frontends.llm.preparation_files import read_images
from compiler.generation.packed_tiles import prepared_tiles
from tests.compiler.frontends.llm.encoder_models import ENCODER_MODELS

pytest.importorskip("transformers")
_WIDTH = 3  # of rows


def _picture(seed: int, height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _processor(kind: str) -> Any:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    made = {"llava_next": LlavaNextImageProcessorPil, "llava_onevision": LlavaOnevisionImageProcessorPil}[kind]
    return made(**ENCODER_MODELS[kind].processor)


def _packed(kind: str, config: dict[str, Any], features: list[Any], sizes: Any, newline: Any) -> Any:
    """The rows that transformers puts together."""
    from transformers import LlavaNextModel, LlavaOnevisionModel

    stub: Any = SimpleNamespace(config=SimpleNamespace(**config))
    stub.config.vision_config = SimpleNamespace(**config["vision_config"])
    if kind == "llava_next":
        return LlavaNextModel.pack_image_features(stub, features, sizes, "full", newline)[0]
    return LlavaOnevisionModel.pack_image_features(stub, features, sizes, newline, config["vision_aspect_ratio"])[0]


@pytest.mark.parametrize("shape", [(16, 32), (70, 23), (9, 50), (33, 100), (41, 40), (5, 5)])
@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiles_and_rows_are_those_of_transformers(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    import torch

    config = ENCODER_MODELS[kind].config(64)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    processor = _processor(kind)
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, kind, 1, "<image>")
    assert preparation is not None
    assert preparation.packing is not None
    several = kind == "llava_next"
    pictures = [_picture(2, *shape), *([_picture(3, 40, 50)] if several else [])]
    wanted = processor(pictures, return_tensors="np")
    inputs, texts = prepared_tiles(pictures, preparation, preparation.packing)

    counts = [1 + text_tiles for text_tiles in _tiles(wanted["image_sizes"], config["image_grid_pinpoints"])]
    tiles = np.concatenate([each[:count] for each, count in zip(wanted["pixel_values"], counts, strict=True)])
    np.testing.assert_allclose(inputs["pixel_values"], tiles, atol=1e-5)

    random = np.random.default_rng(1)
    table = random.standard_normal((1 + sum(counts) * 16, _WIDTH)).astype(np.float32)
    features = list(torch.split(torch.from_numpy(table[1:]).reshape(-1, 16, _WIDTH), counts))
    rows = _packed(kind, config, features, torch.tensor(wanted["image_sizes"]), torch.from_numpy(table[0]))
    found = (table[inputs["taps"]] * inputs["weights"][..., None]).sum(1)
    np.testing.assert_allclose(found, torch.cat(list(rows)), atol=1e-5)
    assert texts == ["<image>" * len(each) for each in rows]


def _tiles(sizes: Any, grids: list[list[int]]) -> list[int]:
    from transformers.image_processing_utils import select_best_resolution

    found = [select_best_resolution(list(size), grids) for size in sizes]
    return [down * across // 16**2 for down, across in found]


def test_several_images_of_onevision_are_not_split(tmp_path: Path) -> None:
    config = ENCODER_MODELS["llava_onevision"].config(64)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llava_onevision"}))
    processor = _processor("llava_onevision")
    processor.save_pretrained(tmp_path)
    preparation = read_images(tmp_path, "llava_onevision", 1, "<image>")
    assert preparation is not None
    assert preparation.packing is not None
    pictures = [_picture(2, 20, 33), _picture(3, 41, 40), _picture(4, 16, 16)]
    wanted = processor([pictures], return_tensors="np")
    inputs, texts = prepared_tiles(pictures, preparation, preparation.packing)
    np.testing.assert_allclose(inputs["pixel_values"], wanted["pixel_values"][:, 0], atol=1e-5)
    assert texts == ["<image>" * 17] * 3
    ends = inputs["taps"].reshape(3, 17, 4)[:, -1]
    assert not ends.any()
    np.testing.assert_array_equal(inputs["taps"].reshape(3, 17, 4)[:, :-1, 0].ravel(), np.arange(1, 49))
