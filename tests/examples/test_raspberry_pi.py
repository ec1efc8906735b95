"""The example's program runs under an emulator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from examples import raspberry_pi
from tests.compiler.device.emulators import target_that_runs
from tests.conftest import OPTIMIZE


def test_speech_detection_verifies_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("silero_vad", reason="the demo's model package")
    target_that_runs("raspberry-pi-4")
    raspberry_pi.main(["--output", str(tmp_path / "speech")])
    shown = capsys.readouterr().out
    assert "verified" in shown
    if os.environ.get(OPTIMIZE):
        assert (tmp_path / "speech").stat().st_size < 6e6
