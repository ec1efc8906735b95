"""Images read with Pillow, as pixels; and recordings in integer WAV files, as samples at any rate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import InputError, StorageError
from compiler.support.optional import optional_module
from compiler.support.processing import MAX_PIXELS

Array = np.ndarray
Image = str | Path | bytes | Array
"""A PNG, JPEG, WebP, BMP or GIF file, by its path or bytes, or an uint8 array (height, width, 3)."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""The supported formats, by Pillow's names: Pillow's other formats start programs, or are rare and little tested."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read_image(image: Image) -> Any:
    """An RGB image from Pillow, rotated according to its EXIF data.

    Raises:
        StorageError: the file does not exist.
        InputError: it cannot be read, or is too large.
        MissingDependencyError: Pillow is not installed.
    """
    pillow = optional_module("PIL.Image", "images", "reads images")
    operations = optional_module("PIL.ImageOps", "images", "reads images")
    name = _name(image, "the image")
    try:
        if isinstance(image, np.ndarray):
            _check_size(name, *(image.shape[:2] if image.ndim > 1 else (1, image.size)))
            return pillow.fromarray(image).convert("RGB")
        picture = pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS)
        _check_size(name, picture.height, picture.width)
        picture = operations.exif_transpose(picture)
        if picture.mode.startswith("I;16"):  # 16-bit gray PNG files, which Pillow clips at 255
            picture = pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return picture.convert("RGB")
    except FileNotFoundError as error:
        raise StorageError(f"no such file: {name}") from error
    except (InputError, MemoryError):
        raise
    except pillow.UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise InputError(f"{name} cannot be read: unknown format", f"convert it to one of {formats}") from error
    except Exception as error:  # Pillow's formats raise various exceptions on damaged files
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def pixels_of(image: Image) -> Array:
    """Pixels, uint8 (height, width, 3), contiguous. Raises like `read_image`."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        _check_size("the image", *image.shape[:2])
        return np.ascontiguousarray(image)
    return np.array(read_image(image), np.uint8)


def _name(file: Image, otherwise: str) -> str:
    return str(file) if isinstance(file, str | Path) else otherwise


def _check_size(name: str, height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width} x {height} pixels, and at most {MAX_PIXELS} are read", "scale it down")


Audio = str | Path | bytes | Array
"""A WAV file, by its path or bytes, or samples at the model's rate: float32 (samples,) from -1 to 1."""

_MAX_SAMPLES = 1 << 28
_WIDTHS = (1, 2, 3, 4)  # bytes per sample


def read_audio(audio: Audio, rate: int) -> Array:
    """Samples, float32 (samples,), at `rate` samples per second; channels are averaged.

    Raises:
        StorageError: the file does not exist.
        InputError: the file is not an integer WAV file, or contains no samples or non-finite numbers.
    """
    if isinstance(audio, np.ndarray):
        samples = np.asarray(audio, np.float32)
        if samples.ndim != 1:
            raise InputError(f"audio must be samples of one channel, but has the shape {samples.shape}")
    else:
        samples, own = _wave_file(audio)
        samples = _resampled(samples, own, rate)
    if not samples.size or not np.isfinite(samples).all():
        raise InputError(f"{_name(audio, 'the audio')} holds no samples, or numbers that are not finite")
    return samples


def wave_seconds(audio: bytes) -> float:
    """Length of a WAV file in seconds, according to its header. Raises InputError if the header cannot be read."""
    with _opened(audio) as (file, frames):
        return float(frames / file.getframerate())


@contextmanager
def _opened(audio: str | Path | bytes) -> Iterator[tuple[Any, int]]:
    """A WAV file opened with the standard library, and its number of frames. The number is limited by the file's size,
    because headers of files written to a pipe contain the maximum value."""
    import wave  # not imported for models without audio

    try:
        with wave.open(io.BytesIO(audio) if isinstance(audio, bytes) else str(audio)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            size = len(audio) if isinstance(audio, bytes) else Path(audio).stat().st_size
            frames = min(file.getnframes(), size // (channels * width))
            if width not in _WIDTHS or frames * channels > _MAX_SAMPLES or not 1000 <= rate <= 1_000_000:
                raise InputError(f"audio of {frames} samples of {8 * width} bits at {rate} Hz is not supported")
            yield file, frames
    except FileNotFoundError as error:
        raise StorageError(f"no such file: {audio!s}") from error
    except (wave.Error, EOFError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: truncated chunks
        name, reason = _name(audio, "the audio"), getattr(error, "strerror", None) or str(error) or "it is truncated"
        hint = f"convert it: ffmpeg -i {name if isinstance(audio, str | Path) else 'IN'} OUT.wav"
        raise InputError(f"{name} is not a WAV file of integers: {reason}", hint) from error


def _wave_file(audio: str | Path | bytes) -> tuple[Array, int]:
    """Samples and their rate."""
    with _opened(audio) as (file, frames):
        channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
        content = file.readframes(frames)
    content = content[: len(content) // (width * channels) * width * channels]
    if width == 1:
        values = (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        parts = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.int32)
        values = ((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) / 2**31).astype(np.float32)
    else:
        values = (np.frombuffer(content, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)
    return values.reshape(-1, channels).mean(1, dtype=np.float32), rate


def _resampled(samples: Array, old: int, new: int) -> Array:
    """Samples at another rate, without frequencies that the new rate cannot represent; processed in chunks of minutes,
    joined at their ends."""
    if old == new:
        return samples
    part = 60 * old
    parts = [_by_spectrum(samples[start : start + part], old, new) for start in range(0, len(samples), part)]
    return np.concatenate(parts) if parts else samples


def _by_spectrum(samples: Array, old: int, new: int) -> Array:
    count = max(1, round(len(samples) * new / old))
    spectrum = np.fft.rfft(samples.astype(np.float64))
    new_spectrum = np.zeros(count // 2 + 1, spectrum.dtype)
    shared = min(len(new_spectrum), len(spectrum))
    new_spectrum[:shared] = spectrum[:shared]
    return (np.fft.irfft(new_spectrum, count) * (count / len(samples))).astype(np.float32)
