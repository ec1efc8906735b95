"""Speech detection with Silero VAD: 32 ms frames through a recurrent model; the caller keeps its state."""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.catalog import package_folder

Array = np.ndarray
Runner = Callable[[Mapping[str, Array]], Mapping[str, Array]]

SAMPLE_RATE = 16_000
FRAME = 512
CONTEXT = 64
RECORDING = Path(__file__).parent / "data" / "speech.wav"


def model_path() -> Path:
    """Return the path of the Silero VAD model in the package `silero-vad`."""
    return package_folder("silero_vad") / "data" / "silero_vad.onnx"


def read_recording(path: Path = RECORDING) -> NDArray[np.float32]:
    """Read a 16-bit mono recording at 16 kHz: samples in [-1, 1], with half a second of silence on both sides."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    silence = np.zeros(SAMPLE_RATE // 2, np.float32)
    return np.concatenate([silence, samples.astype(np.float32) / 32768, silence])


def first_frame() -> dict[str, Array]:
    """Return the model's inputs for an initial frame of silence."""
    return {
        "input": np.zeros((1, CONTEXT + FRAME), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(SAMPLE_RATE, np.int64),
    }


def speech_probabilities(run: Runner, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability of speech in each 32 ms frame."""
    inputs = first_frame()
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples])
    frames = len(samples) // FRAME
    probabilities = np.empty(frames, np.float32)
    for index in range(frames):
        window = padded[index * FRAME : index * FRAME + CONTEXT + FRAME]
        outputs = run({**inputs, "input": window[None]})
        inputs["state"] = outputs["stateN"]
        probabilities[index] = outputs["output"].item()
    return probabilities


def segments(probabilities: NDArray[np.float32], threshold: float = 0.5) -> list[tuple[float, float]]:
    """Return start and end, in seconds, of each run of frames above the threshold."""
    active = np.concatenate([[False], probabilities >= threshold, [False]])
    edges = np.flatnonzero(np.diff(active.astype(np.int8)))
    seconds = edges * FRAME / SAMPLE_RATE
    return [(float(start), float(end)) for start, end in zip(seconds[::2], seconds[1::2], strict=True)]
