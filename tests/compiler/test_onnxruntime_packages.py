"""Unchanged packages that import onnxruntime give the same answers on `tensorwright.onnxruntime`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each prints its answer as JSON.
PROGRAMS = {
    "silero_vad": """
from silero_vad import get_speech_timestamps, load_silero_vad
import numpy, torch, wave
with wave.open("examples/data/speech.wav") as file:
    samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2").astype(numpy.float32) / 32768
model = load_silero_vad(onnx=True)
parts = get_speech_timestamps(torch.from_numpy(samples), model)
model.reset_states()
scores = [float(model(torch.from_numpy(samples[at : at + 512].copy()), 16000)) for at in range(0, 5120, 512)]
answer = [[[each["start"], each["end"]] for each in parts], scores]
""",
    "nudenet": """
from importlib.util import find_spec
from nudenet import NudeDetector
picture = find_spec("skimage").submodule_search_locations[0] + "/data/astronaut.png"
answer = [[each["class"], each["score"], each["box"]] for each in NudeDetector().detect(picture)]
""",
    "rapidocr_onnxruntime": """
from PIL import Image, ImageDraw, ImageFont
from rapidocr_onnxruntime import RapidOCR
picture = Image.new("RGB", (320, 120), "white")
for line, text in enumerate(("Compiled once", "runs anywhere")):
    ImageDraw.Draw(picture).text((10, 12 + 50 * line), text, "black", ImageFont.load_default(32))
import numpy
found, _ = RapidOCR()(numpy.asarray(picture))
answer = [[text, float(score), box] for box, text, score in found]
""",
}
INSTALL = "import tensorwright.onnxruntime\ntensorwright.onnxruntime.install()\n"


def answer(program: str, before: str = "") -> Any:
    code = f"{before}{program}\nimport json\nprint(json.dumps(answer, default=float))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_alike(found: Any, expected: Any) -> None:
    """The same texts and numbers of parts; scores to 1e-3 and places to a pixel or a sample's window."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 if abs(expected) <= 1 else 1)


@pytest.mark.parametrize("package", PROGRAMS)
def test_unchanged_packages_answer_the_same(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    expected = answer(PROGRAMS[package])
    assert expected
    assert_alike(answer(PROGRAMS[package], INSTALL), expected)
