"""Preprocessing of sounds: log-mel spectrograms for an encoder, and the text that represents them in a prompt."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from compiler.artifact.language_model import AudioPreparation
from compiler.errors import InputError

Array = np.ndarray
_HIGHEST = 8000.0  # Hz of the last band
_LINEAR = 1000.0  # Hz up to which the mel scale is linear
_STEP = math.log(6.4) / 27


def windows(samples: Array, preparation: AudioPreparation) -> list[Array]:
    """Yield the windows of speech that a model reads at once."""
    return [samples[start : start + preparation.samples] for start in range(0, len(samples), preparation.samples)]


def prepared_sound(samples: Array, preparation: AudioPreparation, name: str) -> tuple[dict[str, Array], list[str]]:
    """Return inputs of an encoder whose feature rows replace tokens, by the name of the spectrograms, and the text of a
    sound. Raises InputError for sounds that are too long for a masked encoder."""
    parts = max(1, -(-len(samples) // preparation.samples))
    if not preparation.masked:
        features = log_mel(samples, preparation, parts)
        return {name: features}, [preparation.text * preparation.rows * parts]
    if parts > 1:
        seconds = preparation.samples / preparation.rate
        raise InputError(f"the model reads at most {seconds:g} s of sound at once", "give a shorter part")
    frames = -(-len(samples) // preparation.hop)
    mask = (np.arange(preparation.samples // preparation.hop) < frames).astype(np.int64)[None]
    rows = ((frames - 1) // 2 + 1 - 2) // 2 + 1  # two steps of a stride of two
    if rows < 1:
        raise InputError("the sound is too short", f"give at least {4 * preparation.hop} samples")
    return {name: log_mel(samples, preparation), "feature_attention_mask": mask}, [preparation.text * rows]


def log_mel(samples: Array, preparation: AudioPreparation, parts: int = 1) -> Array:
    """Return the spectrogram of at most `parts` times `preparation.samples` samples: float32 (parts, mels, frames)."""
    window, hop, length = preparation.window, preparation.hop, parts * preparation.samples
    padded = np.zeros(length, np.float64)
    padded[: len(samples)] = samples
    padded = np.pad(padded, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: length // hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
    levels = np.log10(np.maximum(power @ _bands(window, preparation.mels, preparation.rate), 1e-10))
    levels = (np.maximum(levels, levels.max() - 8) + 4) / 4
    levels = levels.reshape(parts, -1, preparation.mels).transpose(0, 2, 1)
    return np.ascontiguousarray(levels, np.float32)


@cache
def _bands(window: int, mels: int, rate: int) -> Array:
    """Return triangular filters of equal area, evenly spaced in mels: (frequencies, mels)."""
    frequencies = np.linspace(0, rate / 2, window // 2 + 1)
    edges = _hertz(np.linspace(0, _mel(_HIGHEST), mels + 2))
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    found: Array = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
    return found


def _mel(frequency: float) -> float:
    linear = 3 * frequency / 200
    return linear if frequency < _LINEAR else 15 + math.log(frequency / _LINEAR) / _STEP


def _hertz(mels: Array) -> Array:
    return np.where(mels < 15, 200 * mels / 3, _LINEAR * np.exp(_STEP * (np.maximum(mels, 15) - 15)))
