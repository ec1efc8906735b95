"""Media inputs of a model's encoder: preprocessed images for vision-language models, log-mel spectrograms for models
like Whisper, or arrays without preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import InputError
from compiler.generation.image_inputs import prepared_images, prepared_patches
from compiler.generation.packed_tiles import prepared_tiles
from compiler.generation.sound_inputs import log_mel, prepared_sound
from compiler.support.media_files import Audio, Image, read_audio


@dataclass(frozen=True, kw_only=True)
class Media:
    """Media of a prompt.

    Attributes:
        images: in the order of their markers in the prompt.
        audio: speech; models like Whisper read only its first window.
        inputs: the encoder's inputs by name, instead of images and audio.
    """

    images: Sequence[Image] = ()
    audio: Audio | None = None
    inputs: Mapping[str, Any] | None = None

    def prepared(
        self, description: LanguageModelDescription, name: str, rank: int
    ) -> tuple[Mapping[str, Any] | None, list[str], str]:
        """Return the encoder's inputs, the placeholder text of each image or of the sound, and the marker to replace.

        Args:
            name, rank: name and rank of the encoder's first input.

        Raises:
            InputError: the model does not read such media, or they cannot be read.
            MissingDependencyError: Pillow is not installed.
        """
        if sum((bool(self.images), self.audio is not None, self.inputs is not None)) > 1:
            raise InputError("give images, audio or the encoder's inputs, not several of them")
        if self.images:
            return self._prepared_images(description, name, rank)
        if self.audio is not None:
            audio = description.audio
            if audio is None:
                raise InputError(_no("audio", description), "give its inputs as arrays: inputs={...}")
            samples = read_audio(self.audio, audio.rate)
            if audio.text:
                return *prepared_sound(samples, audio, name), audio.text
            return {name: log_mel(samples[: audio.samples], audio)}, [], ""
        return self.inputs, [], ""

    def _prepared_images(
        self, description: LanguageModelDescription, name: str, rank: int
    ) -> tuple[Mapping[str, Any], list[str], str]:
        images = description.images
        if images is None:
            raise InputError(_no("images", description), "give its inputs as arrays: inputs={...}")
        marker = images.place or images.text
        if images.patches is not None:
            return *prepared_patches(self.images, images, images.patches), marker
        if images.packing is not None:
            return *prepared_tiles(self.images, images, images.packing), marker
        pixels, texts = prepared_images(self.images, images)
        return {name: pixels[None] if rank == 5 else pixels}, texts, marker


def _no(what: str, description: LanguageModelDescription) -> str:
    return f"the model ({description.architecture}) does not say how it reads {what}"


def with_media(text: str, texts: Sequence[str], marker: str) -> str:
    """Replace the markers in a prompt by texts of images or of a sound. Raises InputError if their numbers differ."""
    parts = text.split(marker)
    if len(parts) != len(texts) + 1:
        raise InputError(
            f"the prompt has {len(parts) - 1} markers of images or sounds ({marker}), and {len(texts)} are given"
        )
    return "".join(part + own for part, own in zip(parts, [*texts, ""], strict=True))
