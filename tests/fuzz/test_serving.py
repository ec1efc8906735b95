"""The requests of the serve suite are as described; the suite itself: `python -m tests.fuzz serve`."""

from __future__ import annotations

import io
import json
import wave

import pytest

from compiler.serving.app import completion_options, embeddings, rerank, transcriptions
from tests.fuzz.serving import fields
from tests.fuzz.serving.attacks import ATTACKS, Attack, png, wav
from tests.fuzz.serving.random_requests import request


def test_pictures_and_speech_are_sound_unless_they_lie() -> None:
    image = pytest.importorskip("PIL.Image")
    opened = image.open(io.BytesIO(png(24, 16)))
    assert opened.convert("RGB").size == (24, 16)
    with pytest.raises(OSError, match=r"truncated|broken"):
        image.open(io.BytesIO(png(500, 500, b"\0" * 10))).convert("RGB")
    with wave.open(io.BytesIO(wav(50, 8000, 1, 2))) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (50, 8000, 2)


def test_a_seed_gives_a_request_again_and_seeds_differ() -> None:
    made = [[(each.path, each.body(), each.headers) for each in map(request, range(300))] for _ in range(2)]
    assert made[0] == made[1]
    assert len({body for _, body, _ in made[0]}) > 200
    assert len({path for path, _, _ in made[0]}) > 8


def test_sound_requests_have_every_field() -> None:
    ignored = completion_options.IGNORED | set(completion_options.NEUTRAL)
    assert set(fields.COMPLETION) == completion_options.COMPLETION_FIELDS | ignored
    assert set(fields.CHAT) == completion_options.CHAT_FIELDS | ignored
    assert set(fields.EMBEDDINGS) == embeddings.FIELDS | embeddings.IGNORED
    assert set(fields.RERANK) == rerank.FIELDS
    assert set(fields.TRANSCRIPTION) == transcriptions.FIELDS
    assert len({name for name, _ in fields.field_requests()}) > 3000


def test_attacks_on_schemas_hold_the_schema() -> None:
    attack = ATTACKS["schema of 490 arrays"]
    assert isinstance(attack, Attack)
    body = json.loads(attack.body())
    schema, depth = body["response_format"]["json_schema"]["schema"], 0
    while "items" in schema:
        schema, depth = schema["items"], depth + 1
    assert depth == 490
