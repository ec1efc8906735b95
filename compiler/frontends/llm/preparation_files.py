"""Reads the preprocessing of speech and images from preprocessor_config.json or processor_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.artifact.fields import FieldError, decode
from compiler.artifact.language_model import AudioPreparation, ImagePreparation
from compiler.errors import InvalidModelError
from compiler.frontends.llm.image_layouts import FILES, UNCHANGED, image_kind
from compiler.frontends.llm.safetensors_folder import read_json

_WHISPER = {"sampling_rate": 16000, "n_fft": 400, "hop_length": 160}


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
    found = image_kind(kind)
    description = found.layout({**values, **found.further(folder), "frame": frame})
    if description is None:
        return None
    normalizes = values.get("do_normalize", True)
    mean, std = values.get("image_mean", found.colors[0]), values.get("image_std", found.colors[1])
    return _made(
        ImagePreparation,
        folder,
        **description,
        text=text,
        rows=rows,
        scale=values.get("rescale_factor", 1 / 255),
        resample=values.get("resample", found.resample),
        mean=mean if normalizes else UNCHANGED[0],
        std=std if normalizes else UNCHANGED[1],
    )


def _settings(folder: Path, part: str) -> dict[str, Any] | None:
    """Return the settings of a part of a processor; None if there is no file."""
    for name in FILES:
        if (folder / name).exists():
            values = read_json(folder / name)
            section = values.get(part, values)
            if not isinstance(section, dict):
                raise InvalidModelError(f"{folder / name}: {part!r} is not an object")
            if section is not values or name == FILES[0]:
                return section
    return None


def _made(kind: Any, folder: Path, **values: Any) -> Any:
    try:
        return decode(json.dumps(values).encode(), kind)
    except FieldError as error:
        raise InvalidModelError(f"{folder}: the settings of its processor are invalid: {error}") from error
