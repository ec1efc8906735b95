"""Recordings as common programs write them, and broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import InputError, StorageError
from compiler.support.media_files import read_audio, wave_seconds
from tests.fuzz.serving.attacks import wav


def test_a_recording_that_was_written_to_a_pipe() -> None:
    file = wav(800, 8000)
    piped = file[:4] + b"\xff" * 4 + file[8:40] + b"\xff" * 4 + file[44:]  # lengths that its writer did not know
    assert 0.1 <= wave_seconds(piped) < 0.11
    np.testing.assert_array_equal(read_audio(piped, 8000), read_audio(file, 8000))


@pytest.mark.parametrize(
    ("at", "content"),
    [
        (34, struct.pack("<H", 40)),
        (34, b"\xff\xff"),
        (16, b"\x12\xff\0\0"),
        (22, bytes(2)),
        (24, bytes(4)),
        (20, b"\x03\0"),
    ],
)
def test_broken_heads(at: int, content: bytes) -> None:
    file = wav(800, 8000)
    with pytest.raises(InputError, match="audio"):
        read_audio(file[:at] + content + file[at + len(content) :], 8000)


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    with pytest.raises(InputError, match=r"song\.mp3 is not a WAV file of integers"):
        read_audio(tmp_path / "song.mp3", 8000)
    with pytest.raises(StorageError, match=r"no such file: .*none\.wav"):
        read_audio(tmp_path / "none.wav", 8000)
