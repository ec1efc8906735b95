"""Sandbox jobs of a server: `STATES` are built before client data arrives, `JOBS` read that data."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compiler.artifact.fields import decode
from compiler.artifact.language_model import AudioPreparation, LanguageModelDescription
from compiler.generation.grammar import Grammar, Grammars, Kind
from compiler.generation.media import Media
from compiler.generation.prompts import PromptReader
from compiler.generation.tokenizer import Tokenizer, tokens_of
from compiler.generation.tool_calls import call_syntax
from compiler.generation.transcription import spectrograms
from compiler.serving.app.tensors import read_inference
from compiler.serving.limits import Limits
from compiler.serving.sandbox.forker import serve
from compiler.serving.sandbox.process import allow, allow_waiting, fork_on_demand, lift_processor_limit, receive, send
from compiler.serving.text.reranker import encoded_pairs
from compiler.support.media_files import pixels_of, read_audio, wave_seconds
from compiler.support.tokenizer_file import read_tokenizer

Array = np.ndarray


def _prompt_reader(description: bytes, tokenizer: bytes, encoder: list[Any] | None, context: int) -> PromptReader:
    described = decode(description, LanguageModelDescription)
    encoder_input = None if encoder is None else (str(encoder[0]), int(encoder[1]))
    return PromptReader(described, Tokenizer(tokenizer, described), encoder_input, context)


def _grammars(description: bytes, tokenizer: bytes) -> Grammars:
    described = decode(description, LanguageModelDescription)
    return Grammars(Tokenizer(tokenizer, described), described.vocabulary, described.stop_tokens)


def _text_tokenizer(content: str, max_tokens: int) -> Any:
    tokenizer = read_tokenizer(content.encode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


STATES: Mapping[str, Callable[..., Any]] = {
    "prompt reader": _prompt_reader,
    "grammars": _grammars,
    "text tokenizer": _text_tokenizer,
}


def _prompts(reader: PromptReader, prompts: list[Any], images: list[bytes], audio: bytes | None) -> list[Any]:
    """Return the tokens of each prompt, int64, and the encoder's inputs."""
    media = Media(images=images, audio=audio) if images or audio is not None else None
    found = []
    for prompt in prompts:
        tokens, inputs = reader.prepared(prompt, media)
        found.append([np.array(tokens, np.int64), None if inputs is None else dict(inputs)])
    return found


def _call_syntax(reader: PromptReader, names: Mapping[str, Any]) -> list[Any]:
    """Return the fields of the `CallSyntax` of a chat template."""
    found = call_syntax(reader, names)
    parts = (found.before, found.between, found.middle, found.end)
    return [*(None if each is None else list(each) for each in parts), found.style]


def _texts(tokenizer: Any, texts: list[str]) -> list[Array]:
    return [np.array(tokens_of(tokenizer, text), np.int64) for text in texts]


def _pairs(tokenizer: Any, query: str, texts: list[str]) -> list[Any]:
    return [list(each) for each in encoded_pairs(tokenizer, query, texts)]


def _speech(_: None, audio: bytes, preparation: bytes, max_seconds: int) -> list[Any]:
    """Return the spectrogram of each part, and the total seconds."""
    how = decode(preparation, AudioPreparation)
    Limits(audio_seconds=max_seconds).check("audio_seconds", math.ceil(wave_seconds(audio)))
    samples = read_audio(audio, how.rate)
    return [spectrograms(samples, how), len(samples) / how.rate]


def _pixels(_: None, image: bytes) -> Array:
    """Decode an image to uint8 (height, width, 3)."""
    return pixels_of(image)


def _inference(_: None, content: bytes, binary: bytes, tensors: int) -> list[Any]:
    return list(read_inference(content, memoryview(binary), Limits(tensors=tensors)))


def _grammar(grammars: Grammars, kind: Kind, text: str, seconds: int) -> Callable[[socket.socket], None]:
    """Compile a grammar; then fork a process for each text that follows it."""
    compiled = grammars.compile(Grammar(kind, text))

    def follow(_: bytes, sock: socket.socket) -> None:
        _follow(grammars, compiled, sock, seconds)

    def go_on(control: socket.socket) -> None:
        lift_processor_limit()
        fork_on_demand(control, follow)

    return go_on


def _follow(grammars: Grammars, compiled: Any, sock: socket.socket, seconds: int) -> None:
    """Send the allowed first tokens and, after each received token, the allowed next tokens."""
    allow(seconds)
    masks = grammars.masks(compiled)
    while True:
        bits, completed = masks.next()
        allow_waiting()
        send(sock, [bits, completed])
        try:
            token = receive(sock)
        except EOFError:
            return
        allow(seconds)
        masks.accept(token)  # an allowed token


JOBS: Mapping[str, Callable[..., Any]] = {
    "prompts": _prompts,
    "call syntax": _call_syntax,
    "texts": _texts,
    "pairs": _pairs,
    "speech": _speech,
    "pixels": _pixels,
    "inference": _inference,
    "grammar": _grammar,
}

if __name__ == "__main__":
    serve(JOBS, STATES)
