"""`TextService`: a language model that generates texts for several clients at once."""

from __future__ import annotations

import asyncio
from typing import Any

from compiler.artifact import TensorDescription
from compiler.artifact.language_model import DESCRIPTION_ASSET
from compiler.errors import InputError, ServiceUnavailableError
from compiler.generation.handle import SequenceHandle
from compiler.generation.language_model import LanguageModel, Prompt
from compiler.generation.media import Media
from compiler.generation.options import GenerationOptions
from compiler.generation.scheduler import Scheduler
from compiler.runtime import Module
from compiler.runtime.identity import module_identity
from compiler.serving.request import Request, Response
from compiler.serving.text.options import GenerationLimits


def is_language_model(module: Module) -> bool:
    """Whether a module was compiled from a language model."""
    return DESCRIPTION_ASSET in module.artifact.assets


class TextService:
    """A service whose answers are texts: `submit` takes prompts, and `infer` refuses tensors."""

    def __init__(self, module: Module, name: str, version: str, limits: GenerationLimits) -> None:
        """Raises MissingDependencyError where a package of the extra `generate` is missing."""
        self.model = LanguageModel(module)
        self.name, self.version, self._limits = name, version, limits
        self._scheduler: Scheduler | None = None

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """None: prompts are texts, messages or tokens."""
        return ()

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        """None."""
        return ()

    @property
    def identity(self) -> str:
        """A digest of the module."""
        return module_identity(self.model.module)

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer at most."""
        return self._running().context

    async def start(self) -> None:
        """Start the scheduler."""
        if self._scheduler is None:
            limits = self._limits
            self._scheduler = await asyncio.to_thread(
                lambda: Scheduler(self.model, limits.max_sequences, queue=limits.max_queue, context=limits.context)
            )

    async def infer(self, request: Request) -> Response:
        """Raises InputError: a language model takes no tensors."""
        raise InputError(f"{self.name!r} is a language model", "use /v1/completions or /v1/chat/completions")

    async def submit(self, prompt: Prompt, options: GenerationOptions, media: Media | None = None) -> SequenceHandle:
        """Hand a prompt in.

        Raises:
            InputError, OptionError: as `Scheduler.submit`.
            QueueFullError: the queue is full.
            ServiceUnavailableError: the service is closed.
        """
        submitted = asyncio.ensure_future(asyncio.to_thread(self._running().submit, prompt, options, media))
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
        """Finish what was submitted."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            await asyncio.to_thread(scheduler.close)


def _cancel_sequence(submitted: asyncio.Future[Any]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
