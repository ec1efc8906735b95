"""Speech as models like Whisper read it: log-mel spectrograms."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from compiler.artifact.language_model import AudioPreparation

Array = np.ndarray

_HIGHEST = 8000.0  # Hz of the last band
_LINEAR = 1000.0  # Hz up to which the scale of mels is linear
_STEP = math.log(6.4) / 27


def windows(samples: Array, preparation: AudioPreparation) -> list[Array]:
    """The parts of speech that a model reads at once, one after another."""
    return [samples[start : start + preparation.samples] for start in range(0, len(samples), preparation.samples)]


def log_mel(samples: Array, preparation: AudioPreparation) -> Array:
    """The spectrogram of at most `preparation.samples` samples: float32 (1, mels, frames)."""
    window, hop = preparation.window, preparation.hop
    padded = np.zeros(preparation.samples, np.float64)
    padded[: len(samples)] = samples
    padded = np.pad(padded, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: preparation.samples // hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
    levels = np.log10(np.maximum(power @ _bands(window, preparation.mels, preparation.rate), 1e-10))
    levels = (np.maximum(levels, levels.max() - 8) + 4) / 4
    return np.ascontiguousarray(levels.T[None], np.float32)


@cache
def _bands(window: int, mels: int, rate: int) -> Array:
    """Triangles of equal area over the frequencies, evenly spaced in mels: (frequencies, mels)."""
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
