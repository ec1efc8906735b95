"""How models split images into tiles and patches: fields of `ImagePreparation`, by model type, from the settings of
their processors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError
from compiler.frontends.llm.safetensors_folder import read_json

Settings = dict[str, Any]
Colors = tuple[tuple[float, float, float], tuple[float, float, float]]  # means and deviations
FILES = ("preprocessor_config.json", "processor_config.json")
UNCHANGED: Colors = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # of images that are not normalized
_HALVES: Colors = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP: Colors = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_LANCZOS, _BILINEAR, _BICUBIC = 1, 2, 3


@dataclass(frozen=True)
class ImageKind:
    """How the models of a type read images.

    Attributes:
        layout: maps the settings of the image processor, with `further` ones, and "frame": tokens before and after the
            rows of an image, or None; to fields of `ImagePreparation`; None for an unknown step.
        further: settings that other files of the folder give.
        resample, colors: defaults of the filter, by Pillow's numbers, and of the channels' means and deviations.
    """

    layout: Callable[[Settings], Settings | None]
    further: Callable[[Path], Settings] = lambda _: {}
    resample: int = _BICUBIC
    colors: Colors = _CLIP


def image_kind(model_type: str) -> ImageKind:
    """Return how models of a type read images."""
    family = next((each for each in ("glm", "qwen") if model_type.startswith(each)), model_type)
    return _KINDS.get(family, _KINDS["idefics3"])


def _rectangle(values: Settings, default: int) -> Settings:
    return {name: _side(values.get("size"), name, default) for name in ("height", "width")}


def _cropped(values: Settings) -> Settings | None:
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


def _squeezed(values: Settings) -> Settings | None:
    """The whole image resized to a square."""
    return None if values.get("do_pan_and_scan") else _rectangle(values, 224)


def _squeezed_in_frame(values: Settings) -> Settings | None:
    """The same with texts around an image, the first of which marks its position."""
    description, frame = _squeezed(values), values["frame"]
    if description is None or frame is None:
        return None
    return {**description, "place": frame[0], "before": f"\n\n{frame[0]}", "after": f"{frame[1]}\n\n"}


def _padded(values: Settings) -> Settings | None:
    """The whole image, centered in a square."""
    if not values.get("do_pad", True) or not values.get("do_normalize", True):  # the mean color fills the square
        return None
    return {**_rectangle(values, 384), "padded": values.get("min_size", 14)}


def _padded_in_frame(values: Settings) -> Settings | None:
    """The same with texts around an image."""
    description = _padded(values)
    return description and {**description, "before": values["boi_token"], "after": values["eoi_token"]}


def _on_canvas(values: Settings) -> Settings:
    """Tiles of a grid with the image's aspect ratio, and the whole image."""
    return {**_rectangle(values, 384), "canvas": (values.get("min_patches", 1), values.get("max_patches", 12))}


def _on_framed_canvas(values: Settings) -> Settings:
    """The same with texts around an image."""
    return {**_on_canvas(values), "before": "<img>", "after": "</img>"}


def _on_placed_canvas(values: Settings) -> Settings:
    """The same with another token for rows than for an image."""
    return {**_on_framed_canvas(values), "place": values["image_placeholder_token"]}


def _on_marked_canvas(values: Settings) -> Settings:
    """The same with texts before tiles too, and another token for rows than for an image."""
    tiles = {"mark": f"{values['tile_token']}_{{number}}", "overview": values["tile_global_token"]}
    texts = {
        "place": values["image_token"],
        "before": values["start_of_img_token"],
        "after": values["end_of_img_token"],
    }
    return {**_on_canvas(values), **tiles, **texts}


def _on_scaled_canvas(values: Settings) -> Settings:
    """Tiles of the grid that changes the image's size the least, and the whole image, with a text after each."""
    texts = {"before": values["boi_token"], "after": values["eoi_token"], "end": values["img_line_break_token"]}
    description = {**_on_canvas({"size": {"height": 512, "width": 512}, **values}), "grid": "scale", **texts}
    return description if values.get("crop_to_patches", True) else {**description, "canvas": None}


def _packed(values: Settings) -> Settings | None:
    """The whole image, and tiles of a grid into which it is scaled to fit."""
    size, crop = values.get("size", {"shortest_edge": 224}), values.get("crop_size")
    given = [_side(each, name, 0) for each in (size, crop) for name in ("shortest_edge", "height", "width")]
    sides = [each for each in given if each != 0]
    if not sides or any(each != sides[0] for each in sides):  # tiles that are resized or cropped
        return None
    side = sides[0]
    packing = {"side": values["side"], "sizes": values.get("image_grid_pinpoints") or values["sizes"]}
    if values["onevision"]:
        if not values.get("do_normalize", True):  # the mean color fills squares
            return None
        ratio = str(values["vision_aspect_ratio"]).removeprefix("anyres_max_")
        packing |= {"alone": True, "most": int(ratio) if ratio.isdecimal() else ratio}
    return {"height": side, "width": side, "packing": packing}


def _in_tiles(values: Settings) -> Settings:
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


def _in_patches(values: Settings, least: int = 56 * 56, most: int = 28 * 28 * 1280, frames: int = 2) -> Settings:
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


def _in_patches_of_frames(values: Settings) -> Settings:
    """Patches of an image at nearly its own size; limits are of the pixels of all frames of a patch."""
    description = _in_patches(values, 112 * 112, 28 * 28 * 15000)
    patches = description["patches"]
    if all(isinstance(patches[each], int) for each in ("frames", "least", "most")) and patches["frames"] > 0:
        limits = {"least": -(-patches["least"] // patches["frames"]), "most": patches["most"] // patches["frames"]}
        patches |= {**limits, "enlarges": "down"}
    return description


def _in_large_patches(values: Settings) -> Settings:
    """Patches of an image at nearly its own size, and of more pixels."""
    description = _in_patches(values, 384 * 384, 1536 * 1536, frames=1)
    return {**description, "patches": {**description["patches"], "enlarges": "nearest"}}


def _in_tiles_of_patches(values: Settings) -> Settings | None:
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


def _in_filled_area(values: Settings) -> Settings:
    """Patches of an image at the largest allowed size with its aspect ratio."""
    side, merge = values.get("patch_size", 16), values.get("pooling_kernel_size", 3)
    rows = values.get("max_soft_tokens", 280)
    pixels = rows * (merge * side) ** 2 if all(isinstance(each, int) for each in (side, merge, rows)) else None
    patches = {"merge": merge, "frames": 1, "fills": True, "least": 1, "most": pixels}
    before, after = values["frame"] or ("", "")
    return {"height": side, "width": side, "patches": patches, "before": before, "after": after}


def _in_lines(values: Settings) -> Settings:
    """Patches of an image with a limited longer side."""
    side = _side(values.get("patch_size"), "height", 16)
    patches = {"merge": values["merge_size"], "frames": 1, "least": 1, "most": 1 << 32}
    longest = _side(values.get("size"), "longest_edge", 1024)
    return {"height": side, "width": side, "longest": longest, "patches": patches}


def _in_marked_lines(values: Settings) -> Settings:
    """The same with a text after each line of rows."""
    return {**_in_lines(values), "between": values["image_break_token"], "after": values["image_end_token"]}


def _merged_patches(folder: Path) -> Settings:
    """The sizes of the encoder of a model of lines."""
    config = read_json(folder / "config.json")
    texts = {"image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    vision = config.get("vision_config")
    return {
        **_texts(folder, texts),
        "patch_size": vision.get("patch_size", 14) if isinstance(vision, dict) else 14,
        "merge_size": config.get("spatial_merge_size", 2),
    }


def _packing(folder: Path) -> Settings:
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


def _texts(folder: Path, defaults: Settings) -> Settings:
    """Settings of the whole processor, or tokens that the tokenizer's settings name."""
    tokens = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    groups = [tokens.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens")]
    named = {key: each for group in (*groups, tokens) if isinstance(group, dict) for key, each in group.items()}
    processor = read_json(folder / FILES[1]) if (folder / FILES[1]).exists() else {}
    found = {name: processor.get(name, named.get(name, default)) for name, default in defaults.items()}
    return {
        name: each["content"] if isinstance(each, dict) and "content" in each else each for name, each in found.items()
    }


def _side(value: Any, name: str, default: int) -> Any:
    """Return a length from an object, or a plain number."""
    return value.get(name, default) if isinstance(value, dict) else default if value is None else value


def _tokens(**defaults: Any) -> Callable[[Path], Settings]:
    return lambda folder: _texts(folder, defaults)


_START, _END = "<|START_OF_IMG|>", "<|END_OF_IMG|>"
_PACKED = ImageKind(_packed, _packing)
_KINDS: Mapping[str, ImageKind] = {
    "aya_vision": ImageKind(
        _on_marked_canvas,
        _tokens(
            image_token="<image>",
            start_of_img_token=_START,
            end_of_img_token=_END,
            tile_token="TILE",
            tile_global_token="TILE_GLOBAL",
        ),
    ),
    "cohere2_vision": ImageKind(
        _on_scaled_canvas, _tokens(boi_token=_START, eoi_token=_END, img_line_break_token="<|IMG_LINE_BREAK|>")
    ),
    "deepseek_vl": ImageKind(_padded),
    "exaone4_5": ImageKind(_in_patches),
    "gemma3": ImageKind(_squeezed_in_frame, resample=_BILINEAR, colors=_HALVES),
    "gemma4": ImageKind(_in_filled_area, colors=UNCHANGED),
    "glm": ImageKind(_in_patches_of_frames),
    "got_ocr2": ImageKind(partial(_rectangle, default=384)),
    "idefics3": ImageKind(_in_tiles, resample=_LANCZOS, colors=_HALVES),
    "internvl": ImageKind(_on_framed_canvas),
    "janus": ImageKind(_padded_in_frame, _tokens(boi_token="<begin_of_image>", eoi_token="<end_of_image>")),
    "lfm2_vl": ImageKind(
        _in_tiles_of_patches, _tokens(use_image_special_tokens=True), resample=_BILINEAR, colors=_HALVES
    ),
    "lfm3_vl": ImageKind(_in_patches),
    "lighton_ocr": ImageKind(_in_lines, _merged_patches),
    "llava": ImageKind(_cropped),
    "llava_next": _PACKED,
    "llava_next_video": _PACKED,
    "llava_onevision": _PACKED,
    "llava_onevision1_5": ImageKind(_in_patches),
    "mistral3": ImageKind(_in_marked_lines, _merged_patches),
    "paddleocr_vl": ImageKind(_in_large_patches),
    "qianfan_ocr": ImageKind(_on_placed_canvas, _tokens(image_placeholder_token="<image>")),
    "qwen": ImageKind(_in_patches),
    "vipllava": ImageKind(_cropped),
}
