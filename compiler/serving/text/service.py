"""`TextService`: a language model that generates texts for several clients at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.artifact import TensorDescription
from compiler.artifact.language_model import DESCRIPTION_ASSET, TOKENIZER_ASSET
from compiler.errors import InputError, OptionError, ServiceUnavailableError
from compiler.generation.grammar import Grammar, Matcher
from compiler.generation.handle import SequenceHandle
from compiler.generation.language_model import LanguageModel
from compiler.generation.loop import check_fits
from compiler.generation.media import Media
from compiler.generation.options import GenerationOptions
from compiler.generation.prompts import Prompt, PromptReader
from compiler.generation.scheduler import Scheduler
from compiler.generation.tool_calls import CallSyntax
from compiler.runtime import Module
from compiler.runtime.identity import module_identity
from compiler.serving.limits import INLINE_TEXT, Limits
from compiler.serving.request import Request, Response
from compiler.serving.sandbox.client import Sandbox, State
from compiler.serving.sandbox.grammars import GrammarProcesses


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as tokens, with the encoder's inputs."""

    tokens: list[int]
    inputs: Mapping[str, Any] | None = None


def _cost(prompt: Prompt) -> int:
    """Return the cost of reading a prompt, in characters; tokens cost nothing, and messages always exceed the limit for
    this process."""
    if isinstance(prompt, str):
        return len(prompt)
    return 0 if all(isinstance(each, int) for each in prompt) else INLINE_TEXT + 1


def is_language_model(module: Module) -> bool:
    """True if a module was compiled from a language model."""
    return DESCRIPTION_ASSET in module.artifact.assets


class TextService:
    """A service that generates texts: `submit` accepts prompts, and `infer` refuses tensors."""

    def __init__(self, module: Module, name: str, version: str, limits: GenerationLimits) -> None:
        """Raises MissingDependencyError if a package of the extra `generate` is missing."""
        self.model = LanguageModel(module)
        self.name, self.version, self._limits = name, version, limits
        self._scheduler: Scheduler | None = None
        self._reader = self.model.prompts
        self._prompts: State | None = None
        self._grammars: GrammarProcesses | None = None
        self._call_syntax: CallSyntax | None = None  # without variables of a request

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """No tensors: prompts are texts, messages or tokens."""
        return ()

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        """No tensors."""
        return ()

    @property
    def identity(self) -> str:
        """A digest of the module."""
        return module_identity(self.model.module)

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt and its answer."""
        return self._running().context

    async def start(self) -> None:
        """Start the scheduler."""
        if self._scheduler is None:
            limits = self._limits
            self._scheduler = await asyncio.to_thread(
                lambda: Scheduler(self.model, limits.max_sequences, queue=limits.max_queue, context=limits.context)
            )
            self._reader = replace(self.model.prompts, context=self._scheduler.context)
            if self._reader.tokenizer is not None:
                await asyncio.to_thread(self._describe, self._reader)

    def _describe(self, reader: PromptReader) -> None:
        """Describe the model for sandboxes."""
        assets, description = self.model.module.artifact.assets, reader.description
        contents = (assets[DESCRIPTION_ASSET].tobytes(), assets[TOKENIZER_ASSET].tobytes())
        self._prompts = State("prompt reader", *contents, reader.encoder_input, reader.context)
        grammars = State("grammars", *contents)
        self._grammars = GrammarProcesses(grammars, description.vocabulary, description.stop_tokens)
        _ = reader.longest_token  # computed now, since it takes long for a large vocabulary

    async def infer(self, request: Request) -> Response:
        """Raises InputError: a language model accepts no tensors."""
        raise InputError(f"{self.name!r} is a language model", "use /v1/completions or /v1/chat/completions")

    async def read(
        self, prompts: Sequence[Prompt], files: tuple[Sequence[bytes], bytes | None], sequences: int, sandbox: Sandbox
    ) -> list[ReadPrompt]:
        """Read the prompts of a request for a number of sequences; short texts in this process, others in a sandbox.

        `files` are the images and the sound of a chat.

        Raises:
            InputError: a prompt or image cannot be read, or does not fit the model.
            QueueFullError: there is no room for this many sequences; nothing is read then.
            ServiceUnavailableError: the service is closed.
        """
        scheduler = self._running()
        scheduler.check_room(sequences)
        reader = self._reader
        for prompt in prompts:
            if isinstance(prompt, str) and self._prompts is not None:
                reader.check_length(prompt)
            elif isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
                check_fits(prompt, scheduler.context)
        images, audio = files
        if not images and audio is None and sum(map(_cost, prompts)) <= INLINE_TEXT:
            return [ReadPrompt(reader.tokens_of(each)) for each in prompts]
        if self._prompts is None:  # only tokens are read here, and refused if they are invalid
            reader.required_tokenizer()
            return [ReadPrompt(reader.tokens_of(each)) for each in prompts]
        found = await sandbox.run("prompts", self._prompts, list(prompts), list(images), audio)
        return [ReadPrompt(tokens.tolist(), inputs) for tokens, inputs in found]

    async def matcher(self, grammar: object, sandbox: Sandbox, limits: Limits) -> Matcher | None:
        """Create the matcher of a grammar, compiled in a sandbox; None for None.

        Raises OptionError if the grammar cannot be used, InputError if compiling it exceeds the limits.
        """
        if grammar is None:
            return None
        assert isinstance(grammar, Grammar)
        if self._grammars is None:
            raise OptionError("a grammar needs a tokenizer, and the model was compiled without one")
        return await self._grammars.matcher(grammar, sandbox, limits)

    async def call_syntax(self, names: Mapping[str, object], sandbox: Sandbox) -> CallSyntax:
        """Return the syntax of calls in the chat template, rendered with these variables in a sandbox.

        Raises InputError if the model has no tokenizer, or its template takes no tools.
        """
        if self._prompts is None:
            self._reader.required_tokenizer()
        if not names and self._call_syntax is not None:
            return self._call_syntax
        before, between, middle, end, style = await sandbox.run("call syntax", self._prompts, dict(names))
        syntax = CallSyntax(tuple(before), tuple(between), None if middle is None else tuple(middle), tuple(end), style)
        if not names:
            self._call_syntax = syntax
        return syntax

    async def submit(
        self, prompt: ReadPrompt, options: GenerationOptions, matcher: Matcher | None = None
    ) -> SequenceHandle:
        """Submit a prompt.

        Raises:
            InputError, OptionError: as `Scheduler.submit`.
            QueueFullError: the queue is full.
            ServiceUnavailableError: the service is closed.
        """
        media = None if prompt.inputs is None else Media(inputs=prompt.inputs)
        submitted = asyncio.ensure_future(
            asyncio.to_thread(self._running().submit, prompt.tokens, options, media, matcher)
        )
        try:
            return await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_cancel_sequence)
            raise

    def _running(self) -> Scheduler:
        if self._scheduler is None:
            raise ServiceUnavailableError(f"model {self.name!r} is not running")
        return self._scheduler

    async def close(self) -> None:
        """Finish submitted sequences."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            await asyncio.to_thread(scheduler.close)
        if self._grammars is not None:
            self._grammars.close()


def _cancel_sequence(submitted: asyncio.Future[Any]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of an embedder: tokenization of texts, and conversion of outputs to vectors.

    Attributes:
        tokenizer: a tokenizer.json of the tokenizers library; None: the one in the module, if it has one.
        pooling: pooling of outputs with a vector per token: their mean, the first ("cls") or the last one.
        normalize: normalize vectors to length 1.
        max_tokens: maximum tokens of a text, which is truncated; None: the module's limit, or 512 if it has none.
        pad_to_multiple_of: texts are padded to a multiple of this number of tokens, so that texts of similar length run
            in one batch. Vectors must not depend on the padding, which is checked with the first text.
    """

    tokenizer: Path | None = None
    pooling: str = "mean"
    normalize: bool = True
    max_tokens: int | None = None
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise OptionError(f"pad_to_multiple_of must be at least 1, not {self.pad_to_multiple_of}")
        if self.pooling not in ("mean", "cls", "last"):
            raise OptionError(f"pooling must be mean, cls or last, not {self.pooling!r}")


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """Limits of a served language model.

    Attributes:
        max_sequences: maximum number of concurrent texts.
        max_queue: maximum number of queued requests; more are refused.
        context: maximum tokens of a prompt and its answer; None: the model's context.
    """

    max_sequences: int = 8
    max_queue: int = 64
    context: int | None = None
