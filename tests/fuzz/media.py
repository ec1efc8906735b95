"""Small images and recordings of every supported kind, and mutated ones."""

from __future__ import annotations

import io
import wave
from functools import cache
from typing import Any

import numpy as np

from tests.fuzz.artifact_mutations import pick
from tests.fuzz.byte_mutations import BYTE_MUTATIONS, Random

_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@cache
def pictures() -> tuple[bytes, ...]:
    """Valid files of Pillow's modes in all supported formats, some with EXIF data, text, a profile or frames."""
    from PIL import Image, ImageCms, PngImagePlugin

    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 22, 3), np.uint8))
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6  # orientation
    text.add_text("a", "b" * 300, zip=True)
    frames = [pixels.rotate(angle) for angle in (0, 90, 180)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options: tuple[tuple[str, str, dict[str, Any]], ...] = (
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("PNG", "RGB", {"exif": exif, "pnginfo": text, "icc_profile": profile}),
        ("PNG", "RGB", {"save_all": True, "append_images": frames}),
        *(("JPEG", mode, {"quality": 80}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", {"progressive": True, "exif": exif, "icc_profile": profile, "subsampling": 0}),
        ("WEBP", "RGB", {"quality": 50, "exif": exif}), ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": frames}),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        ("GIF", "P", {}), ("GIF", "RGB", {"save_all": True, "append_images": frames, "disposal": 3}),
    )  # fmt: skip
    return tuple(_saved(pixels.convert(mode.split(";")[0]), form, mode, given) for form, mode, given in options)


def _saved(image: Any, form: str, mode: str, given: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    (image.convert(mode) if mode == "I;16" else image).save(content, form, **given)
    return content.getvalue()


@cache
def recordings() -> tuple[bytes, ...]:
    """Valid WAV files of each integer width, with one and several channels."""
    found = []
    for width in (1, 2, 3, 4):
        for channels, rate in ((1, 16000), (2, 44100), (6, 8000)):
            content = io.BytesIO()
            with wave.open(content, "wb") as file:
                file.setparams((channels, width, rate, 0, "NONE", ""))
                file.writeframes(np.random.default_rng(width).bytes(300 * width * channels))
            found.append(content.getvalue())
    return tuple(found)


def changed(content: bytes, random: Random) -> bytes:
    """Make one to three changes to a file: numbers in its header, or arbitrary bytes."""
    for _ in range(int(random.integers(1, 4))):
        if not content:
            break
        if random.random() < 0.5:
            size, order = int(pick((1, 2, 4), random)), str(pick(("little", "big"), random))
            number = int(pick(_NUMBERS, random)) & ((1 << 8 * size) - 1)
            at = int(random.integers(min(len(content), 120)))
            content = content[:at] + number.to_bytes(size, order) + content[at + size :]  # type: ignore[arg-type]
        else:
            content = pick(BYTE_MUTATIONS, random)(content, random)
    return content
