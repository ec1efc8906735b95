"""Media inputs of a model's encoder: images, speech, or arrays as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import InputError
from compiler.generation.audio import log_mel
from compiler.generation.images import prepared_images
from compiler.support.media_files import Audio, Image, read_audio


@dataclass(frozen=True, kw_only=True)
class Media:
    """Media that a prompt refers to.

    Attributes:
        images: in the order of their places in the prompt.
        audio: speech, of which the model reads the first part that it reads at once.
        inputs: the encoder's inputs by name, in place of both.
    """

    images: Sequence[Image] = ()
    audio: Audio | None = None
    inputs: Mapping[str, Any] | None = None

    def prepared(
        self, description: LanguageModelDescription, name: str, rank: int
    ) -> tuple[Mapping[str, Any] | None, list[str]]:
        """The encoder's inputs, and for each image the text that stands for it.

        Args:
            name, rank: of the encoder's first input.

        Raises:
            InputError: the model does not read such things, or they cannot be read.
            MissingDependencyError: Pillow is not installed.
        """
        if sum((bool(self.images), self.audio is not None, self.inputs is not None)) > 1:
            raise InputError("give images, audio or the encoder's inputs, not several of them")
        if self.images:
            if description.images is None:
                raise InputError(_no("images", description), "give its inputs as arrays: inputs={...}")
            pixels, texts = prepared_images(self.images, description.images)
            return {name: pixels[None] if rank == 5 else pixels}, texts
        if self.audio is not None:
            if description.audio is None:
                raise InputError(_no("audio", description), "give its inputs as arrays: inputs={...}")
            samples = read_audio(self.audio, description.audio.rate)
            return {name: log_mel(samples[: description.audio.samples], description.audio)}, []
        return self.inputs, []


def _no(what: str, description: LanguageModelDescription) -> str:
    return f"the model ({description.architecture}) does not say how it reads {what}"
