"""The encoder of a language model: it reads speech, images or another text once for each text that is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.artifact import TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import InputError
from compiler.generation.steps import Chunk
from compiler.runtime import Module
from compiler.runtime import load as load_module

Array = np.ndarray
FIRST_ROW = "first_row"


class EncoderInputs:
    """Inputs of the decoder beside the tokens of a sequence: an encoder's results."""

    def __init__(self, found: dict[str, Array], prompt: Sequence[int] = (), image_token: int | None = None) -> None:
        """`prompt`: whose tokens of images take the rows of `found`, one after another."""
        self._found = found
        stands = np.asarray(prompt, np.int64) == image_token
        self._rows = None if image_token is None else np.concatenate([[0], np.cumsum(stands)])

    def of(self, chunk: Chunk) -> dict[str, Array]:
        """By the names of the decoder's inputs, of some tokens."""
        if self._rows is None:
            return self._found
        first = int(self._rows[min(chunk.position, len(self._rows) - 1)]) if chunk.is_prompt else -1
        return {**self._found, FIRST_ROW: np.asarray(first, np.int64)}


class Encoder:
    """A module whose outputs are inputs of the decoder."""

    def __init__(self, content: bytes, decoder: Module, description: LanguageModelDescription) -> None:
        """`content`: the module as a file holds it. Raises as `compiler.load`."""
        self.module = load_module(content, threads=decoder.threads)
        self._image_token = description.image_token
        self._taken = {each.name: each for each in decoder.manifest.session_inputs if each.name in self._returned()}

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """Inputs of the encoder."""
        return self.module.inputs

    def run(self, inputs: Mapping[str, Any] | None, tokens: Sequence[int]) -> EncoderInputs:
        """Inputs of the decoder beside the tokens.

        Args:
            inputs: by the names of `inputs`; None for a prompt without images.
            tokens: the prompt, which stands for images token by token.

        Raises:
            InputError: inputs are missing or do not fit, or the prompt has room for other images.
        """
        stands = 0 if self._image_token is None else list(tokens).count(self._image_token)
        if inputs is None:
            if self._image_token is None or stands:
                names = "; ".join(map(str, self.inputs))
                raise InputError(f"the model reads {names}, and nothing was given", "generate(prompt, inputs={...})")
            nothing = {name: self._nothing(each) for name, each in self._taken.items()}
            return EncoderInputs(nothing, tokens, self._image_token)
        found = self.module.run(inputs)
        if self._image_token is not None:
            rows = sum(len(each) for each in found.values())
            if rows != stands:
                raise InputError(
                    f"the images take {rows} tokens, but the prompt holds {stands} of token {self._image_token}",
                    "the model's processor gives a prompt with as many tokens as its images take",
                )
        return EncoderInputs({name: found[name] for name in self._taken}, tokens, self._image_token)

    def _returned(self) -> set[str]:
        return {each.name for each in self.module.outputs}

    @staticmethod
    def _nothing(description: TensorDescription) -> Array:
        shape = [size if isinstance(size, int) else 1 for size in description.shape]
        return np.zeros(shape, ELEMENT_TYPES[description.carrier or description.dtype].numpy)
