"""Reads the preprocessing of speech and images from preprocessor_config.json or processor_config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from compiler.artifact.fields import FieldError, decode
from compiler.artifact.language_model import AudioPreparation, ImagePreparation
from compiler.errors import InvalidModelError
from compiler.frontends.llm.safetensors_folder import read_json

_FILES = ("preprocessor_config.json", "processor_config.json")
_WHISPER = {"sampling_rate": 16000, "n_fft": 400, "hop_length": 160}
_UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # means and deviations of images that are not normalized
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_LANCZOS, _BILINEAR, _BICUBIC = 1, 2, 3


def read_audio(
    folder: Path, mels: int, frames: int, text: str = "", rows: int = 1, *, masked: bool = False
) -> AudioPreparation:
    """Read the audio preprocessing of a Whisper-like model whose encoder takes `frames` frames.

    Args:
        text, rows, masked: see `AudioPreparation`.

    Raises InvalidModelError.
    """
    values = {**_WHISPER, **(_settings(folder, "feature_extractor") or {})}
    hop = values["hop_length"]
    return _made(
        AudioPreparation,
        folder,
        rate=values["sampling_rate"],
        window=values["n_fft"],
        hop=hop,
        mels=mels,
        samples=frames * hop if isinstance(hop, int) else hop,
        text=text,
        rows=rows,
        masked=masked,
    )


def read_images(
    folder: Path, kind: str, rows: int, text: str, frame: tuple[str, str] | None = None
) -> ImagePreparation | None:
    """Read the image preprocessing of a vision model; None if the folder does not describe it or has an unknown step.

    Args:
        kind: the type of the model.
        rows: number of encoder rows per image.
        text: placeholder for an image row in a prompt.
        frame: tokens before and after the rows of an image; the first one marks its position in a text; None for none.

    Raises InvalidModelError if a file is damaged.
    """
    values = _settings(folder, "image_processor")
    if values is None:
        return None
    if not all(values.get(each, True) for each in ("do_resize", "do_rescale")):
        return None
    family = next((each for each in ("glm", "qwen") if kind.startswith(each)), kind)
    if kind in _FURTHER:
        values = {**values, **_FURTHER[kind](folder)}
    layout, resample, (mean, std) = _KINDS.get(family, _KINDS["idefics3"])
    normalizes = values.get("do_normalize", True)
    description = layout(values)
    if description is None:
        return None
    if kind == "gemma3":
        if frame is None:
            return None
        description |= {"place": frame[0], "before": f"\n\n{frame[0]}", "after": f"{frame[1]}\n\n"}
    elif kind == "gemma4" and frame is not None:
        description |= {"before": frame[0], "after": frame[1]}
    return _made(
        ImagePreparation,
        folder,
        **description,
        text=text,
        rows=rows,
        scale=values.get("rescale_factor", 1 / 255),
        resample=values.get("resample", resample),
        mean=values.get("image_mean", mean) if normalizes else _UNCHANGED[0],
        std=values.get("image_std", std) if normalizes else _UNCHANGED[1],
    )


def _rectangle(values: dict[str, Any], default: int) -> dict[str, Any]:
    return {name: _side(values.get("size"), name, default) for name in ("height", "width")}


def _cropped(values: dict[str, Any]) -> dict[str, Any] | None:
    """The center crop of an image, or the whole image resized to it."""
    if values.get("do_pad"):
        return None
    size, crop = values.get("size", {"shortest_edge": 224}), values.get("crop_size")
    crops = values.get("do_center_crop", True)
    height, width = (_side(crop if crops else size, name, 224) for name in ("height", "width"))
    shortest = None
    if isinstance(size, int) or (isinstance(size, dict) and "shortest_edge" in size):
        shortest = _side(size, "shortest_edge", 224)
        height, width = (height, width) if crops else (shortest, shortest)
    return {"height": height, "width": width, "shortest": shortest}


def _squeezed(values: dict[str, Any]) -> dict[str, Any] | None:
    """The whole image resized to a square."""
    return None if values.get("do_pan_and_scan") else _rectangle(values, 224)


def _padded(values: dict[str, Any]) -> dict[str, Any] | None:
    """The whole image, centered in a square."""
    if not values.get("do_pad", True):
        return None
    return {**_rectangle(values, 384), "padded": values.get("min_size", 14)}


def _padded_in_frame(values: dict[str, Any]) -> dict[str, Any] | None:
    """The same with texts around an image."""
    description = _padded(values)
    return description and {**description, "before": values["boi_token"], "after": values["eoi_token"]}


def _on_canvas(values: dict[str, Any]) -> dict[str, Any]:
    """Tiles of a grid with the image's aspect ratio, and the whole image."""
    return {**_rectangle(values, 384), "canvas": (values.get("min_patches", 1), values.get("max_patches", 12))}


def _on_framed_canvas(values: dict[str, Any]) -> dict[str, Any]:
    """The same with texts around an image."""
    return {**_on_canvas(values), "before": "<img>", "after": "</img>"}


def _on_placed_canvas(values: dict[str, Any]) -> dict[str, Any]:
    """The same with another token for rows than for an image."""
    return {**_on_framed_canvas(values), "place": values["image_placeholder_token"]}


def _on_marked_canvas(values: dict[str, Any]) -> dict[str, Any]:
    """The same with texts before tiles too, and another token for rows than for an image."""
    tiles = {"mark": f"{values['tile_token']}_{{number}}", "overview": values["tile_global_token"]}
    texts = {
        "place": values["image_token"],
        "before": values["start_of_img_token"],
        "after": values["end_of_img_token"],
    }
    return {**_on_canvas(values), **tiles, **texts}


def _on_scaled_canvas(values: dict[str, Any]) -> dict[str, Any]:
    """Tiles of the grid that changes the image's size the least, and the whole image, with a text after each."""
    texts = {"before": values["boi_token"], "after": values["eoi_token"], "end": values["img_line_break_token"]}
    description = {**_on_canvas({"size": {"height": 512, "width": 512}, **values}), "grid": "scale", **texts}
    return description if values.get("crop_to_patches", True) else {**description, "canvas": None}


def _packed(values: dict[str, Any]) -> dict[str, Any] | None:
    """The whole image, and tiles of a grid into which it is scaled to fit."""
    size, crop = values.get("size", {"shortest_edge": 224}), values.get("crop_size")
    sides = {_side(each, name, 0) for each in (size, crop) for name in ("shortest_edge", "height", "width")} - {0}
    if len(sides) != 1:  # tiles that are resized or cropped
        return None
    side = sides.pop()
    packing = {"side": values["side"], "sizes": values.get("image_grid_pinpoints") or values["sizes"]}
    if values["onevision"]:
        ratio = str(values["vision_aspect_ratio"]).removeprefix("anyres_max_")
        packing |= {"alone": True, "most": int(ratio) if ratio.isdecimal() else ratio}
    return {"height": side, "width": side, "packing": packing}


def _in_tiles(values: dict[str, Any]) -> dict[str, Any]:
    """Square tiles of an image with a limited longer side, and the whole image."""
    side = _side(values.get("max_image_size"), "longest_edge", 364)
    return {
        "height": side,
        "width": side,
        "longest": _side(values.get("size"), "longest_edge", 4 * 364),
        "splits": values.get("do_image_splitting", True),
        "frame": "<fake_token_around_image>",
        "overview": "<global-img>",
    }


def _in_patches(
    values: dict[str, Any], least: int = 56 * 56, most: int = 28 * 28 * 1280, frames: int = 2
) -> dict[str, Any]:
    """Patches of an image at nearly its own size; default limits of its pixels, and frames of a patch."""
    side, size = values.get("patch_size", 14), values.get("size")
    lowest, highest = values.get("min_pixels"), values.get("max_pixels")  # they precede `size`
    patches = {
        "merge": values.get("merge_size", 2),
        "frames": values.get("temporal_patch_size", frames),
        "least": _side(size, "shortest_edge", least) if lowest is None else lowest,
        "most": _side(size, "longest_edge", most) if highest is None else highest,
    }
    return {"height": side, "width": side, "patches": patches}


def _in_patches_of_frames(values: dict[str, Any]) -> dict[str, Any]:
    """Patches of an image at nearly its own size; limits are of the pixels of all frames of a patch."""
    description = _in_patches(values, 112 * 112, 28 * 28 * 15000)
    patches = description["patches"]
    if all(isinstance(patches[each], int) for each in ("frames", "least", "most")) and patches["frames"] > 0:
        limits = {"least": -(-patches["least"] // patches["frames"]), "most": patches["most"] // patches["frames"]}
        patches |= {**limits, "enlarges": "down"}
    return description


def _in_large_patches(values: dict[str, Any]) -> dict[str, Any]:
    """Patches of an image at nearly its own size, and of more pixels."""
    description = _in_patches(values, 384 * 384, 1536 * 1536, frames=1)
    return {**description, "patches": {**description["patches"], "enlarges": "nearest"}}


def _in_tiles_of_patches(values: dict[str, Any]) -> dict[str, Any] | None:
    """Patches of an image, and of square tiles if it is large."""
    side, merge = values.get("encoder_patch_size", 16), values.get("downsample_factor", 2)
    limits = [values.get(f"{name}_image_tokens", rows) for name, rows in (("min", 64), ("max", 256))]
    tolerance = values.get("max_pixels_tolerance", 2.0)
    if not all(isinstance(each, int | float) for each in (side, merge, *limits, tolerance)):
        return None
    least, most = (rows * (side * merge) ** 2 for rows in limits)
    tiles = {
        "side": values.get("tile_size", 512),
        "least": values.get("min_tiles", 2),
        "most": values.get("max_tiles", 10),
        "above": most * tolerance,
        "overview": values.get("use_thumbnail", True),
    }
    texts = {}
    if values["use_image_special_tokens"]:
        tiles["mark"] = "<|img_row_{row}_col_{column}|>"
        texts = {"before": "<|image_start|>", "after": "<|image_end|>", "overview": "<|img_thumbnail|>"}
    splits = values.get("do_image_splitting", True) and tiles["most"] != 1
    patches = {"merge": merge, "frames": 1, "enlarges": "side", "least": least, "most": most}
    return {"height": side, "width": side, "patches": {**patches, "tiles": tiles if splits else None}, **texts}


def _in_filled_area(values: dict[str, Any]) -> dict[str, Any]:
    """Patches of an image at the largest allowed size with its aspect ratio."""
    side, merge = values.get("patch_size", 16), values.get("pooling_kernel_size", 3)
    rows = values.get("max_soft_tokens", 280)
    pixels = rows * (merge * side) ** 2 if all(isinstance(each, int) for each in (side, merge, rows)) else None
    patches = {"merge": merge, "frames": 1, "fills": True, "least": 1, "most": pixels}
    return {"height": side, "width": side, "patches": patches}


def _in_lines(values: dict[str, Any]) -> dict[str, Any]:
    """Patches of an image with a limited longer side."""
    side = _side(values.get("patch_size"), "height", 16)
    patches = {"merge": values["merge_size"], "frames": 1, "least": 1, "most": 1 << 32}
    longest = _side(values.get("size"), "longest_edge", 1024)
    return {"height": side, "width": side, "longest": longest, "patches": patches}


def _in_marked_lines(values: dict[str, Any]) -> dict[str, Any]:
    """The same with a text after each line of rows."""
    return {**_in_lines(values), "between": values["image_break_token"], "after": values["image_end_token"]}


def _merged_patches(folder: Path) -> dict[str, Any]:
    """The sizes of the encoder of a model of lines."""
    config, texts = (
        read_json(folder / "config.json"),
        {"image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    )
    vision = config.get("vision_config")
    return {
        **_texts(folder, texts),
        "patch_size": vision.get("patch_size", 14) if isinstance(vision, dict) else 14,
        "merge_size": config.get("spatial_merge_size", 2),
    }


def _packing(folder: Path) -> dict[str, Any]:
    """The sizes of the encoder of a model of packed tiles."""
    config = read_json(folder / "config.json")
    vision = config.get("vision_config")
    image, patch = (vision.get(f"{name}_size") if isinstance(vision, dict) else None for name in ("image", "patch"))
    if not isinstance(image, int) or not isinstance(patch, int) or patch < 1:
        raise InvalidModelError(f"{folder}: config.json does not give the sizes of images and patches")
    onevision = config.get("model_type") == "llava_onevision"
    return {
        "side": image // patch,
        "sizes": config.get("image_grid_pinpoints"),
        "onevision": onevision,
        "vision_aspect_ratio": config.get("vision_aspect_ratio", "anyres_max_9"),
    }


def _texts(folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of the whole processor, or tokens that the tokenizer's settings name."""
    tokens = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    groups = [tokens.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens")]
    named = {key: each for group in (*groups, tokens) if isinstance(group, dict) for key, each in group.items()}
    processor = read_json(folder / _FILES[1]) if (folder / _FILES[1]).exists() else {}
    found = {name: processor.get(name, named.get(name, default)) for name, default in defaults.items()}
    return {
        name: each["content"] if isinstance(each, dict) and "content" in each else each for name, each in found.items()
    }


# By model type: settings that other files give, with their defaults.
_AYA = {
    "image_token": "<image>",
    "start_of_img_token": "<|START_OF_IMG|>",
    "end_of_img_token": "<|END_OF_IMG|>",
    "tile_token": "TILE",
    "tile_global_token": "TILE_GLOBAL",
}
_COHERE = {
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}
_FURTHER: dict[str, Callable[[Path], dict[str, Any]]] = {
    "aya_vision": lambda folder: _texts(folder, _AYA),
    "cohere2_vision": lambda folder: _texts(folder, _COHERE),
    "janus": lambda folder: _texts(folder, {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}),
    "lfm2_vl": lambda folder: _texts(folder, {"use_image_special_tokens": True}),
    "lighton_ocr": _merged_patches,
    "llava_next": _packing,
    "llava_next_video": _packing,
    "llava_onevision": _packing,
    "mistral3": _merged_patches,
    "qianfan_ocr": lambda folder: _texts(folder, {"image_placeholder_token": "<image>"}),
}
# By model type: the image layout, Pillow's filter, and the channels' default means and deviations.
_KINDS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any] | None], int, tuple[tuple[float, ...], ...]]] = {
    "llava": (_cropped, _BICUBIC, _CLIP),
    "llava_next": (_packed, _BICUBIC, _CLIP),
    "llava_next_video": (_packed, _BICUBIC, _CLIP),
    "llava_onevision": (_packed, _BICUBIC, _CLIP),
    "vipllava": (_cropped, _BICUBIC, _CLIP),
    "aya_vision": (_on_marked_canvas, _BICUBIC, _CLIP),
    "cohere2_vision": (_on_scaled_canvas, _BICUBIC, _CLIP),
    "got_ocr2": (partial(_rectangle, default=384), _BICUBIC, _CLIP),
    "gemma3": (_squeezed, _BILINEAR, _HALVES),
    "gemma4": (_in_filled_area, _BICUBIC, _UNCHANGED),
    "deepseek_vl": (_padded, _BICUBIC, _CLIP),
    "janus": (_padded_in_frame, _BICUBIC, _CLIP),
    "qianfan_ocr": (_on_placed_canvas, _BICUBIC, _CLIP),
    "internvl": (_on_framed_canvas, _BICUBIC, _CLIP),
    "exaone4_5": (_in_patches, _BICUBIC, _CLIP),
    "lfm3_vl": (_in_patches, _BICUBIC, _CLIP),
    "llava_onevision1_5": (_in_patches, _BICUBIC, _CLIP),
    "qwen": (_in_patches, _BICUBIC, _CLIP),
    "glm": (_in_patches_of_frames, _BICUBIC, _CLIP),
    "lfm2_vl": (_in_tiles_of_patches, _BILINEAR, _HALVES),
    "lighton_ocr": (_in_lines, _BICUBIC, _CLIP),
    "mistral3": (_in_marked_lines, _BICUBIC, _CLIP),
    "paddleocr_vl": (_in_large_patches, _BICUBIC, _CLIP),
    "idefics3": (_in_tiles, _LANCZOS, _HALVES),
}


def _side(value: Any, name: str, default: int) -> Any:
    """Return a length from an object, or a plain number."""
    return value.get(name, default) if isinstance(value, dict) else default if value is None else value


def _settings(folder: Path, part: str) -> dict[str, Any] | None:
    """Return the settings of a part of a processor; None if there is no file."""
    for name in _FILES:
        if (folder / name).exists():
            values = read_json(folder / name)
            section = values.get(part, values)
            if not isinstance(section, dict):
                raise InvalidModelError(f"{folder / name}: {part!r} is not an object")
            if section is not values or name == _FILES[0]:
                return section
    return None


def _made(kind: Any, folder: Path, **values: Any) -> Any:
    try:
        return decode(json.dumps(values).encode(), kind)
    except FieldError as error:
        raise InvalidModelError(f"{folder}: the settings of its processor are invalid: {error}") from error
