"""Settings of image processors of any content are read, or refused by an error that names the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.errors import InvalidModelError
from compiler.frontends.llm.preparation_files import read_images

_CONFIG = {"vision_config": {"image_size": 16, "patch_size": 4}, "image_grid_pinpoints": [[16, 32]]}
_SETTINGS = ("size", "crop_size", "patch_size", "merge_size", "max_pixels", "max_patches", "tile_size", "image_mean")
_WRONG = ("x", [1], {"height": [2], "shortest_edge": "y"}, -1, 1e30)


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen2_vl", "glm4v", "lfm2_vl", "gemma4", "mistral3", "janus"])
def test_wrong_settings_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_CONFIG, "model_type": kind}))
    refused = []
    for name in _SETTINGS:
        for value in _WRONG:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps({name: value}))
            try:
                read_images(tmp_path, kind, 4, "<image>", ("<a>", "<b>"))
            except InvalidModelError as error:
                refused.append(str(error))
    assert len(refused) >= len(_WRONG)
    assert all(str(tmp_path) in each for each in refused)
