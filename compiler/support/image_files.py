"""Images: files that Pillow reads, as pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import InputError, StorageError
from compiler.support.optional import optional_module
from compiler.support.processing import MOST_PIXELS

Array = np.ndarray
Image = str | Path | bytes | Array
"""A PNG, JPEG, WebP, BMP or GIF file, by its path or its bytes, or uint8 (height, width, 3)."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""The formats that are read, by Pillow's names: others of Pillow's start programs, or are rare and little tried."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read_image(image: Image) -> Any:
    """Image of Pillow, in RGB, turned as its EXIF data say.

    Raises:
        StorageError: there is no such file.
        InputError: it cannot be read, or is too large.
        MissingDependencyError: Pillow is not installed.
    """
    pillow = optional_module("PIL.Image", "images", "reads images")
    operations = optional_module("PIL.ImageOps", "images", "reads images")
    try:
        if isinstance(image, np.ndarray):
            _check_size(*(image.shape[:2] if image.ndim > 1 else (1, image.size)))
            return pillow.fromarray(image).convert("RGB")
        found = pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS)
        _check_size(found.height, found.width)
        return operations.exif_transpose(found).convert("RGB")
    except FileNotFoundError as error:
        raise StorageError(f"no such file: {image!s}") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # its formats raise what they like on damaged files
        raise InputError(f"the image cannot be read: {error}", f"give one of {', '.join(FORMATS)}") from error


def pixels_of(image: Image) -> Array:
    """Pixels, uint8 (height, width, 3), contiguous. Raises as `read_image`."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        _check_size(*image.shape[:2])
        return np.ascontiguousarray(image)
    return np.array(read_image(image), np.uint8)


def _check_size(height: int, width: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(f"an image has {width} x {height} pixels, and at most {MOST_PIXELS} are read")
