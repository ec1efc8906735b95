"""`LanguageModel`: a compiled language model that generates text.

An encoder reads speech, images or another text once per generated text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from compiler.artifact import Key, TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.fields import FieldError, decode
from compiler.artifact.language_model import DESCRIPTION_ASSET, ENCODER_ASSET, TOKENIZER_ASSET, LanguageModelDescription
from compiler.errors import ArtifactError, InputError, OptionError
from compiler.generation.chat_templates import Messages
from compiler.generation.grammar import Grammar, Grammars, Matcher
from compiler.generation.loop import Run, SequenceState, check_fits
from compiler.generation.media import Media
from compiler.generation.options import Generation, GenerationOptions
from compiler.generation.output import Output, Piece, TokenRules
from compiler.generation.prompts import Prompt, PromptReader
from compiler.generation.speculation import DraftModel, PromptLookup, Speculation
from compiler.generation.steps import BatchedSteps, CheckpointedSteps, Chunk, SessionSteps, Steps
from compiler.generation.tokenizer import Tokenizer
from compiler.runtime import Module
from compiler.runtime import load as load_module
from compiler.support.interrupts import interruptible
from compiler.support.media_files import Image

_ROWS = 64  # cache capacities are multiples of this


class LanguageModel:
    """A language model: a module with the tokenizer that was compiled into it.

    Generations are independent of each other and may run in several threads at once.
    """

    def __init__(self, module: Module, draft: LanguageModel | None = None) -> None:
        """Create a language model from a compiled module.

        Args:
            module: a module compiled from a language model.
            draft: a smaller model with the same vocabulary, for speculative decoding.

        Raises:
            ArtifactError: the module is not a language model, or its description is damaged.
            OptionError: the draft model has a different vocabulary.
            MissingDependencyError: a package of the extra `generate` is missing.
        """
        self.module = module
        assets = module.artifact.assets
        if DESCRIPTION_ASSET not in assets:
            raise ArtifactError(
                f"module {module.manifest.model_name!r} is not a language model",
                "compile one from a GGUF file or a folder of the transformers library",
            )
        try:
            self.description = decode(assets[DESCRIPTION_ASSET].tobytes(), LanguageModelDescription)
        except FieldError as error:
            raise ArtifactError(f"the module's description of its language model is damaged: {error}") from error
        content = assets.get(TOKENIZER_ASSET)
        self.tokenizer = None if content is None else Tokenizer(content.tobytes(), self.description)
        encoder = assets.get(ENCODER_ASSET)
        self.encoder = None if encoder is None else Encoder(encoder.tobytes(), module, self.description)
        first = None if self.encoder is None else self.encoder.inputs[0]
        self.prompts = PromptReader(
            self.description, self.tokenizer, None if first is None else (first.name, len(first.shape))
        )
        self.draft = draft
        if draft is not None:
            _check_same_tokens(self, draft)

    @interruptible
    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        media: Media | None = None,
        stream: Callable[[str], object] | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> Generation:
        """Generate a text.

        Args:
            prompt: a text, messages ({"role": ..., "content": ...}) or tokens; for a model that transcribes or
                translates, an empty prompt stands for its start tokens.
            media: inputs of the model's encoder, if it has one. The settings `inputs`, `images` and `audio` set its
                fields: inputs={"input_features": ...}, images=["cat.png"], audio="speech.wav".
            options: generation options; None for the defaults (greedy).
            stream: called with each piece of the text; pieces are whole characters.
            cancel: set it, from another thread or from `stream`, to end the generation after the current token.
            settings: fields of `GenerationOptions` that replace those of `options`.

        Raises:
            InputError: the prompt does not fit the context, is empty, or has unknown tokens; `inputs` are missing,
                do not fit the encoder, or do not fit the prompt.
            OptionError: an option has an invalid value.
        """
        media = merged_media(media, settings)
        run = self._run(prompt, merged_options(options, settings), cancel, media)
        for piece in run:
            if stream is not None and piece.text:
                stream(piece.text)
        return run.result

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None, *, media: Media | None = None, **settings: Any
    ) -> Iterator[Piece]:
        """Generate token by token: each `Piece` has a token and the text that it completes.

        Leaving the loop ends the generation. See `generate` for arguments.
        """
        media = merged_media(media, settings)
        yield from self._run(prompt, merged_options(options, settings), None, media)

    def conversation(self, context: int | None = None) -> Conversation:
        """Start a chat, whose cache keeps earlier turns.

        Args:
            context: capacity in tokens; None for the model's context, 4096 at most.
        """
        return Conversation(self, min(self.description.context, 4096) if context is None else context)

    def tokens_of(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt. Raises InputError if it is empty, or has tokens outside the vocabulary."""
        return self.prompts.tokens_of(prompt)

    def chat_tokens(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None, **names: object
    ) -> list[int]:
        """Return the tokens of messages, for `generate`, with tools and variables for the chat template.

        Args:
            messages: {"role": ..., "content": ...}; those that call tools may lack content.
            tools: JSON schemas of functions that the model may call.
            names: additional variables for the template, such as enable_thinking=False.

        Raises InputError if the model has no tokenizer or chat template, or the template refuses the messages.
        """
        return self.prompts.chat_tokens(messages, tools, **names)

    def prepared(self, prompt: Prompt, media: Media | None) -> tuple[list[int], Mapping[str, Any] | None]:
        """See `PromptReader.prepared`."""
        return self.prompts.prepared(prompt, media)

    def encoded(self, inputs: Mapping[str, Any] | None, tokens: Sequence[int]) -> EncoderInputs | None:
        """Run the encoder and return the decoder's inputs besides tokens; None for models without an encoder.

        Raises InputError if inputs are missing, or do not fit the encoder or the prompt.
        """
        return None if self.encoder is None else self.encoder.run(inputs, tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones; "" without a tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode(tokens)

    def steps(self, slots: int, context: int) -> Steps:
        """Create steps for this many sequences of at most `context` tokens each."""
        capacity = min(-(-context // _ROWS) * _ROWS, max(self.description.context, context))
        kind = BatchedSteps if self.description.sequences else SessionSteps
        steps = kind(self.module, slots, capacity)
        return steps if steps.rewinds else CheckpointedSteps(steps)

    def output(
        self, prompt: Sequence[int], options: GenerationOptions, room: int, matcher: Matcher | None = None
    ) -> Output:
        """Create the still empty result of a sequence.

        Args:
            room: maximum number of tokens, including the prompt.
            matcher: matcher of a grammar that was compiled elsewhere; None to compile the grammar in the options.

        Raises OptionError for options that the model does not support.
        """
        if options.speculative and not self.description.sequences:
            raise OptionError(
                "speculative decoding needs a module that returns the logits of several tokens per run",
                "compile it with sequences=True (tensorwright compile --sequences)",
            )
        self.module.adapter_number(options.adapter)
        if options.stops and self.tokenizer is None:
            raise OptionError("stop texts need a tokenizer, and the model was compiled without one")
        unknown = [token for token in dict(options.logit_bias) if token >= self.description.vocabulary]
        if unknown:
            raise OptionError(
                f"logit_bias has the token {unknown[0]}, of a vocabulary of {self.description.vocabulary}"
            )
        if matcher is None and options.grammar is not None:
            assert isinstance(options.grammar, Grammar)
            matcher = self._grammars.matcher(options.grammar)
        description = self.description
        never, never_first = (
            [token for token in tokens if token < description.vocabulary]  # they may be of a larger vocabulary
            for tokens in (description.suppressed, description.suppressed_first)
        )
        rules = TokenRules(description.stop_tokens, never, never_first)
        return Output(prompt, options, rules, self.decode, room, matcher)

    @cached_property
    def _grammars(self) -> Grammars:
        if self.tokenizer is None:
            raise OptionError("a grammar needs a tokenizer, and the model was compiled without one")
        return Grammars(self.tokenizer, self.description.vocabulary, self.description.stop_tokens)

    def draft_steps(self, slots: int, context: int) -> Steps | None:
        """Create steps for the draft model; None if there is none."""
        return None if self.draft is None else self.draft.steps(slots, min(context, self.draft.description.context))

    def speculation(self, options: GenerationOptions, drafts: Steps | None, slot: int) -> Speculation:
        """Create the speculation of a sequence; `drafts` are the draft model's steps."""
        if drafts is None or self.draft is None:
            return Speculation(PromptLookup(), options.speculative)
        room = self.draft.description.context if drafts.room is None else drafts.room
        return Speculation(DraftModel(drafts, slot, room), options.speculative)

    def _run(
        self, prompt: Prompt, options: GenerationOptions, cancel: threading.Event | None, media: Media | None
    ) -> Run:
        tokens, inputs = self.prepared(prompt, media)
        context = self.description.context
        check_fits(tokens, context)
        wanted = max(min(len(tokens) + options.max_new_tokens, context), len(tokens))
        steps = self.steps(1, wanted)
        steps.attach(0, self.encoded(inputs, tokens))
        return self._started(SequenceState(steps, context), tokens, options, cancel)

    def _started(
        self, state: SequenceState, tokens: list[int], options: GenerationOptions, cancel: threading.Event | None
    ) -> Run:
        speculation = None
        state.choose(options.adapter)
        output = self.output(tokens, options, state.room)
        if options.speculative:
            drafts = (
                None if self.draft is None else self.draft.steps(1, min(state.room, self.draft.description.context))
            )
            speculation = self.speculation(options, drafts, 0)
        return Run(state, tokens, output, cancel, speculation)


class Conversation:
    """Turns of one chat; the cache keeps earlier turns."""

    def __init__(self, model: LanguageModel, context: int) -> None:
        if not 1 <= context <= model.description.context:
            raise OptionError(f"the context must be 1 to {model.description.context} tokens, not {context}")
        self._model, self._context = model, context
        self._steps = model.steps(1, context)
        self._state = SequenceState(self._steps, context)
        self._images: list[Image] = []
        self.messages: list[dict[str, Any]] = []

    @interruptible
    def say(
        self,
        text: str,
        options: GenerationOptions | None = None,
        *,
        images: Sequence[Image] = (),
        stream: Callable[[str], object] | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> Generation:
        """Answer a user's message, optionally with images; both become part of `messages`. Arguments and errors as for
        `LanguageModel.generate`.

        After an error the conversation is unchanged.
        """
        model = self._model
        messages = [*self.messages, user_message(text, len(images))]
        shown = [*self._images, *images]
        tokens, inputs = model.prepared(messages, Media(images=shown) if shown else None)
        check_fits(tokens, self._context)
        if images or (model.encoder is not None and not self._state.tokens):
            self._steps.attach(0, model.encoded(inputs, tokens))
            self._state = SequenceState(self._steps, self._context)  # everything is read again
        run = model._started(self._state, tokens, merged_options(options, settings), cancel)
        for piece in run:
            if stream is not None and piece.text:
                stream(piece.text)
        self.messages, self._images = [*messages, {"role": "assistant", "content": run.result.text}], shown
        return run.result


def user_message(text: str, images: int = 0, sounds: int = 0) -> dict[str, Any]:
    """Create a message for chat templates, with markers for images and sounds before its text."""
    markers = [*[{"type": "image"}] * images, *[{"type": "audio"}] * sounds]
    return {"role": "user", "content": [*markers, {"type": "text", "text": text}] if markers else text}


def load(
    source: str | os.PathLike[str] | bytes,
    *,
    threads: int | None = None,
    trusted_keys: Sequence[Key] | None = None,
    draft: str | os.PathLike[str] | bytes | None = None,
) -> LanguageModel:
    """Load a compiled language model.

    Args:
        source: the path of a `.twm` file, or its bytes.
        threads: number of threads of a run; None for the module's own setting.
        trusted_keys: see `compiler.load`.
        draft: path or bytes of a smaller model with the same tokens, for speculative decoding.

    Raises:
        StorageError, ArtifactError, IncompatibleArtifactError, SignatureError: as `compiler.load`.
        ArtifactError: it is not a language model.
        MissingDependencyError: a package of the extra `generate` is missing.
    """

    def loaded(each: str | os.PathLike[str] | bytes) -> Module:
        return load_module(each, threads=threads, trusted_keys=trusted_keys)

    return LanguageModel(loaded(source), None if draft is None else LanguageModel(loaded(draft)))


def _check_same_tokens(model: LanguageModel, draft: LanguageModel) -> None:
    contents = [each.module.artifact.assets.get(TOKENIZER_ASSET) for each in (model, draft)]
    tokenizers = [None if each is None else each.tobytes() for each in contents]
    if tokenizers[0] != tokenizers[1] or model.description.vocabulary != draft.description.vocabulary:
        raise OptionError(
            "the tokenizer or vocabulary of the draft model differs from the model's", "use one of its family"
        )


def merged_options(options: GenerationOptions | None, settings: Mapping[str, Any]) -> GenerationOptions:
    """Return options with some replaced. Raises OptionError for unknown options and invalid values."""
    try:
        return replace(options or GenerationOptions(), **settings)
    except TypeError as error:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise OptionError(f"unknown option of a generation: {error}", f"known: {known}") from error


def merged_media(media: Media | None, settings: dict[str, Any]) -> Media | None:
    """Return media with fields moved from the settings. Raises OptionError if both are given."""
    media_settings = {name: settings.pop(name) for name in ("inputs", "images", "audio") if name in settings}
    media_settings = {name: value for name, value in media_settings.items() if value is not None}
    if media_settings and media is not None:
        raise OptionError(f"`media` and {', '.join(media_settings)} exclude each other", "put all in `media`")
    return Media(**media_settings) if media_settings else media


Array = np.ndarray
FIRST_ROW = "first_row"
_SPECTROGRAM = "input_features"
_GRIDS, _PIXELS = "image_grid_thw", "pixel_values"
_SHIFTS = "shifts"  # an encoder's output: offsets of positions, the last column that of tokens after an image
_KEPT = "kept"  # an encoder's output: the feature rows that replace tokens


class EncoderInputs:
    """Inputs of the decoder besides the tokens of a sequence: an encoder's results."""

    def __init__(self, found: dict[str, Array], prompt: Sequence[int] = (), image_token: int | None = None) -> None:
        """`prompt`: tokens, whose image tokens are replaced by the rows of `found` in order."""
        self._found = found
        self._stands = stands = np.asarray(prompt, np.int64) == image_token
        self._rows = None if image_token is None else np.concatenate([[0], np.cumsum(stands)])

    def end(self, end: int) -> int:
        """Return the end of a chunk that would end at `end`, after an image whose rows may attend to one another."""
        while 0 < end < len(self._stands) and self._stands[end - 1] and self._stands[end]:
            end += 1
        return end

    def of(self, chunk: Chunk) -> dict[str, Array]:
        """Return the decoder's inputs for a chunk of tokens, by name."""
        if self._rows is None:
            return self._found
        before = int(self._rows[min(chunk.position, len(self._rows) - 1)])
        return {**self._found, FIRST_ROW: np.asarray(before if chunk.is_prompt else ~before, np.int64)}


class Encoder:
    """The encoder's module, whose outputs are inputs of the decoder."""

    def __init__(self, content: bytes, decoder: Module, description: LanguageModelDescription) -> None:
        """`content`: bytes of a module file. Raises as `compiler.load`."""
        self.module = load_module(content, threads=decoder.threads)
        self._image_token = description.image_token
        self._taken = {each.name: each for each in decoder.manifest.session_inputs if each.name in self._returned()}

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """Inputs of the encoder."""
        return self.module.inputs

    def run(self, inputs: Mapping[str, Any] | None, tokens: Sequence[int]) -> EncoderInputs:
        """Run the encoder and return the decoder's inputs besides the tokens.

        Args:
            inputs: encoder inputs by name; None for a prompt without images.
            tokens: the prompt, with one placeholder token per feature row of an image.

        Raises:
            InputError: inputs are missing or do not fit, or the prompt has another number of placeholders.
        """
        stands = 0 if self._image_token is None else list(tokens).count(self._image_token)
        if inputs is None:
            if self._image_token is None or stands:
                names = "; ".join(map(str, self.inputs))
                raise InputError(f"the model reads {names}, and nothing was given", "generate(prompt, inputs={...})")
            nothing = {name: self._nothing(each) for name, each in self._taken.items()}
            return EncoderInputs(nothing, tokens, self._image_token)
        outputs = self._outputs(inputs)
        if self._image_token is not None:
            if _KEPT in outputs:
                outputs = {name: outputs[name][outputs[_KEPT]] for name in self._taken}
            rows = len(outputs[next(iter(self._taken))])
            if rows != stands:
                what = "sounds" if self.inputs[0].name == _SPECTROGRAM else "images"
                raise InputError(
                    f"the {what} take {rows} tokens, but the prompt holds {stands} of token {self._image_token}",
                    f"the model's processor gives a prompt with as many tokens as its {what} take",
                )
        return EncoderInputs({name: outputs[name] for name in self._taken}, tokens, self._image_token)

    def _outputs(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run the encoder, for patches image by image: attention is within images, and its cost grows with the square
        of the number of patches of a run."""
        images = _by_image(inputs)
        if images is None:
            return self.module.run(inputs)
        found = [self.module.run(each) for each in images]
        outputs = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        if _SHIFTS in outputs:  # each image also moves the positions of those after it
            behind = np.cumsum([each[_SHIFTS][-1, -1] for each in found[:-1]])
            counts = [len(each[_SHIFTS]) for each in found]
            outputs[_SHIFTS] = outputs[_SHIFTS] + np.repeat([0, *behind], counts)[:, None]
        return outputs

    def _returned(self) -> set[str]:
        return {each.name for each in self.module.outputs}

    @staticmethod
    def _nothing(description: TensorDescription) -> Array:
        shape = [size if isinstance(size, int) else 1 for size in description.shape]
        return np.zeros(shape, ELEMENT_TYPES[description.carrier or description.dtype].numpy)


def _by_image(inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the inputs of each of several images of patches; None for other inputs, and for one image.

    Raises InputError if the (frames, rows, columns) of images do not match the number of patches.
    """
    if inputs.keys() != {_GRIDS, _PIXELS}:
        return None
    grids, patches = np.asarray(inputs[_GRIDS]), np.asarray(inputs[_PIXELS])
    counts = grids.prod(-1) if grids.ndim == 2 else np.zeros(0, np.int64)
    if (grids < 1).any() or int(counts.sum()) != len(patches):
        raise InputError(
            f"{_GRIDS} describes {int(counts.sum())} patches, and {_PIXELS} holds {len(patches)}",
            "give both as the model's processor returns them",
        )
    if len(grids) < 2:
        return None
    parts = zip(grids[:, None], np.split(patches, np.cumsum(counts)[:-1]), strict=True)
    return [{_GRIDS: grid, _PIXELS: part} for grid, part in parts]
