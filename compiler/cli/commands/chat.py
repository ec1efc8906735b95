"""`tensorwright chat`."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compiler
from compiler.cli import generation, options
from compiler.cli.options import argument, command_of, option
from compiler.cli.output import print_note, write_out
from compiler.cli.progress import Steps
from compiler.errors import InputError, OptionError

HELP = """Chat with a language model: a module, or a model that is compiled first and cached.

Empty lines are ignored; /reset begins a new conversation, /quit or the end of the input ends it, and /help lists the
commands. Ctrl-C stops an answer. With a model that reads images, /image FILE adds an image to the next message.

[bold]Typical[/]

  tensorwright chat smollm2.twm

[bold]Examples[/]

  A GGUF file, a transformers model folder, or a model on the Hugging Face Hub:
    tensorwright chat SmolLM2-135M-Instruct.Q4_1.gguf
    tensorwright chat hf:HuggingFaceTB/SmolLM2-135M-Instruct

  Less predictable answers, with a role:
    tensorwright chat smollm2.twm --temperature 0.7 --top-p 0.9 --system "You are a pirate."
"""


_COMMANDS = """/reset       begin a new conversation
/image FILE  add an image to the next message, with a model that reads images
/quit        quit (or end the input)
/help        show these commands; Ctrl-C stops an answer; // begins a message with a slash
"""


@dataclass(frozen=True, kw_only=True)
class _Options(options.GenerationOptions):
    module: Path = argument("A .twm file, or a model.", "MODEL")
    system: str | None = option("A system message.", "TEXT")
    context: int | None = option("Context size in tokens; the model's, 4096 at most, if not given.", "N", min=1)
    max_new_tokens: int = option("Maximum number of generated tokens.", "N", default=512, min=0)


@command_of
def command(given: _Options) -> None:
    generation.prepare_generation()
    chosen = generation.generation_options(given)
    model = _loaded(given)
    conversation = _begun(model, given.context, given.system)
    images: list[str] = []
    while (line := _line()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            conversation = _begun(model, given.context, given.system)
        elif line.startswith("/image "):
            images.append(line.removeprefix("/image ").strip())
        elif line == "/help":
            write_out(_COMMANDS)
        elif line.startswith("/") and not line.startswith("//"):
            print_note(f"{line.split()[0]} is not a command; /help lists them, and // begins a message with a slash")
        elif line:
            _answer(conversation, line.removeprefix("/"), images, chosen)
            images = []


def _loaded(given: _Options) -> Any:
    """Load the language model from a module file, or compile a model (or load it from the cache)."""
    from compiler.cli.paths import check_is_module
    from compiler.generation import LanguageModel, load
    from compiler.support.hub import PREFIX

    path = given.module
    if not (str(path).startswith(PREFIX) or path.suffix == ".gguf" or (path / "config.json").exists()):
        check_is_module(path)
        return load(path, threads=given.threads, trusted_keys=given.trusted or None, draft=given.draft)

    if given.trusted:
        raise OptionError("--trusted-key is for modules, which can be signed", f"compile and sign {path} first")
    with Steps() as steps:
        module = compiler.compile(path, threads=given.threads, sequences=given.speculative > 0, progress=steps)
    return LanguageModel(module, None if given.draft is None else load(given.draft, threads=given.threads))


def _begun(model: Any, context: int | None, system: str | None) -> Any:
    conversation = model.conversation(context)
    if system is not None:
        conversation.messages.append({"role": "system", "content": system})
    return conversation


def _answer(conversation: Any, line: str, images: list[str], chosen: Any) -> None:
    """Print the answer, or the error for invalid input; the conversation continues either way."""

    try:
        with _cancelled_by_interrupt() as cancel:
            result = conversation.say(line, chosen, images=images, stream=write_out, cancel=cancel)
    except InputError as error:
        print_note(str(error))
        return
    write_out("\n")
    print_note(
        f"{len(result.tokens)} tokens at {result.decode_tokens_per_second:.1f}/s, ended by {result.finish_reason}"
    )


@contextlib.contextmanager
def _cancelled_by_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets."""
    event = threading.Event()
    previous_handler = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def _line() -> str | None:
    """Read a line from the user; None at the end."""

    if sys.stdin.isatty():
        write_out("> ")
    data = sys.stdin.buffer.readline()
    if not data:
        return None
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        print_note("this line is not valid UTF-8")
        return ""
