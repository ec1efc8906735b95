"""Speech of any length as text, with models like Whisper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.artifact.language_model import AudioPreparation
from compiler.errors import InputError, OptionError
from compiler.generation.language_model import LanguageModel
from compiler.generation.media import Media
from compiler.generation.options import Generation, GenerationOptions
from compiler.generation.sound_inputs import Array, log_mel, windows
from compiler.generation.steps import Chunk
from compiler.support.media_files import Audio, read_audio

TASKS = ("transcribe", "translate")
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_PLAIN = "<|notimestamps|>"


@dataclass(frozen=True)
class Transcription:
    """A text of speech.

    Attributes:
        text: text of all parts.
        language: as "en"; "" of models for one language.
        seconds: duration of the speech.
        parts: the generation of each part that the model read at once.
    """

    text: str
    language: str
    seconds: float
    parts: tuple[Generation, ...]


@dataclass(frozen=True)
class Speech:
    """Speech that is ready for a model.

    Attributes:
        media: media of each part that the model reads at once, in order.
        prompt: the tokens that say language and task.
        language: as "en"; "" of models for one language.
    """

    media: tuple[Media, ...]
    prompt: tuple[int, ...]
    language: str


def transcribe(
    model: LanguageModel,
    audio: Audio,
    options: GenerationOptions | None = None,
    *,
    language: str | None = None,
    task: str = "transcribe",
    **settings: Any,
) -> Transcription:
    """The text of speech, which is read in parts of 30 s (as long as the model reads at once) without overlap.

    Args:
        audio: a WAV file, by its path or bytes, or float32 samples at the model's rate.
        options, settings: see `LanguageModel.generate`; `max_new_tokens` is of each part.
        language: as "en"; None for what the model finds in the first part.
        task: one of `TASKS`; "translate" gives English.

    Raises:
        InputError: the audio cannot be read, or the model does not read speech.
        OptionError: a language or a task that the model does not know.
    """
    preparation = speech_preparation(model)
    samples = read_audio(audio, preparation.rate)
    speech = prepared_speech(model, spectrograms(samples, preparation), language=language, task=task)
    prompt = list(speech.prompt)
    parts = tuple(model.generate(prompt, options, media=each, **settings) for each in speech.media)
    seconds = len(samples) / preparation.rate
    return Transcription(joined([each.text for each in parts]), speech.language, seconds, parts)


def joined(texts: list[str]) -> str:
    """The texts of parts that follow each other."""
    return " ".join(text.strip() for text in texts if text.strip())


def speech_preparation(model: LanguageModel) -> AudioPreparation:
    """Preparation of speech for a model. Raises InputError where it does not read speech."""
    preparation = model.description.audio
    if preparation is None or model.encoder is None or not model.description.start:
        raise InputError(f"the model ({model.description.architecture}) does not transcribe speech")
    return preparation


def spectrograms(samples: Array, preparation: AudioPreparation) -> list[Array]:
    """Spectrograms of the parts of speech that a model reads at once, one after another."""
    return [log_mel(part, preparation) for part in windows(samples, preparation)]


def prepared_speech(
    model: LanguageModel, parts: Sequence[Array], *, language: str | None = None, task: str = "transcribe"
) -> Speech:
    """Model inputs for transcribing speech, from its spectrograms. Raises as `transcribe`."""
    speech_preparation(model)
    if task not in TASKS:
        raise OptionError(f"the task {task!r} is not one of {', '.join(TASKS)}")
    assert model.encoder is not None
    name = model.encoder.inputs[0].name
    media = tuple(Media(inputs={name: part}) for part in parts)
    begin, languages = model.description.start[0], _languages(model)
    plain = None if model.tokenizer is None else model.tokenizer.token(_PLAIN)
    prompt = [begin]
    if languages:
        if language is None:
            assert media[0].inputs is not None
            language = _found(model, media[0].inputs, begin, languages)
        if language not in languages:
            raise OptionError(f"the model does not know the language {language!r}", f"known: {', '.join(languages)}")
        prompt += [languages[language], _required(model, f"<|{task}|>")]
    elif task != "transcribe" or language not in (None, "en"):
        raise OptionError("the model transcribes one language alone", "leave out the language and the task")
    if plain is None:
        prompt = [*model.description.start] if not languages else prompt
    else:
        prompt.append(plain)
    return Speech(media, tuple(prompt), language or "")


def _languages(model: LanguageModel) -> dict[str, int]:
    """The tokens of languages, by their names; empty where the model has one."""
    if model.tokenizer is None:
        return {}
    special = model.tokenizer.special_tokens().items()
    return {text[2:-2]: token for text, token in special if _LANGUAGE.fullmatch(text)}


def _found(model: LanguageModel, inputs: Mapping[str, Any], begin: int, languages: Mapping[str, int]) -> str:
    """The language whose token is the most probable behind the first one."""
    steps = model.steps(1, model.description.context)
    steps.attach(0, model.encoded(inputs, [begin]))
    [logits] = steps.run([Chunk(0, [begin], 0, 1, is_prompt=True, logits=1)])
    scores = logits[0][list(languages.values())]
    return list(languages)[int(np.argmax(scores))]


def _required(model: LanguageModel, text: str) -> int:
    assert model.tokenizer is not None
    token = model.tokenizer.token(text)
    if token is None:
        raise OptionError(f"the model has no token {text}")
    return token
