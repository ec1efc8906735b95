"""`tensorwright generate`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.cli import generation, options
from compiler.cli.arguments import parse_arrays
from compiler.cli.options import argument, command_of, flag, option
from compiler.cli.output import print_json, print_note, write_out
from compiler.errors import InputError, OptionError

HELP = """Continue a text, or answer a message, with a compiled language model.

[bold]Typical[/]

  tensorwright compile SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2.twm
  tensorwright generate smollm2.twm "What is the capital of France?"

[bold]Examples[/]

  Continue a text as it is, without the model's chat template:
    tensorwright generate smollm2.twm --raw -p "Once upon a time" --max-new-tokens 100

  Sample tokens reproducibly:
    tensorwright generate smollm2.twm -p "Tell me a story." --temperature 0.8 --top-p 0.95 --seed 7

  An answer in JSON that matches a schema:
    tensorwright generate smollm2.twm -p "Name a city and its country." --json-schema city.json

  Describe an image with a model that reads images:
    tensorwright generate smolvlm.twm --image cat.png -p "What is on this image?"

  Transcribe a WAV file with a model that reads speech:
    tensorwright generate whisper.twm --audio speech.wav --language en

  Text, tokens and tokens per second as JSON; the prompt from standard input:
    tensorwright generate smollm2.twm --json < prompt.txt
"""


@dataclass(frozen=True, kw_only=True)
class _Options(options.GenerationOptions):
    module: Path = options.MODULE_PATH
    text: str | None = argument("The prompt, as --prompt.", "[TEXT]", default=None)
    prompt: str | None = option("The prompt; standard input if not given.", "TEXT", "--prompt", "-p")
    system: str | None = option("A system message before the prompt.", "TEXT")
    inputs: list[str] | None = options.INPUTS
    images: list[Path] | None = option(
        "An image (PNG, JPEG, ...) for the prompt; repeat for more, in order.", "FILE", "--image"
    )
    audio: Path | None = option("A WAV file; without a prompt it is transcribed.", "FILE")
    language: str | None = option("The language of --audio, such as en; detected if not given.", "NAME")
    raw: bool = flag("Continue the prompt without the chat template.", "--raw")
    json_schema: Path | None = option("The text must be valid JSON for this JSON schema.", "FILE")
    grammar: Path | None = option("The text must match this EBNF grammar, whose first rule is root.", "FILE")
    regex: str | None = option("The whole text must match this regular expression.", "PATTERN")
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.cli.paths import check_is_module

    check_is_module(given.module)
    if given.prompt is not None and given.text is not None:
        raise OptionError("the prompt is given twice", "leave out --prompt, or the text after the module")
    prompt = given.text if given.prompt is None else given.prompt
    generation.prepare_generation()
    grammar = generation.grammar_of(given.json_schema, given.grammar, given.regex)
    chosen = generation.generation_options(given, grammar)
    from compiler.generation import load

    model = load(given.module, threads=given.threads, trusted_keys=given.trusted or None, draft=given.draft)
    if given.audio is not None and prompt is None:
        _transcribe(model, given.audio, given.language, chosen, as_json=given.as_json)
        return
    text = prompt if prompt is not None else _standard_input()
    templated = bool(text) and not given.raw and model.description.chat_template is not None
    request: Any = _messages(text, given) if templated else text
    specs = {} if model.encoder is None else {spec.name: spec for spec in model.encoder.inputs}
    read = parse_arrays(given.inputs, "--input", specs) if given.inputs else None
    media: dict[str, Any] = {"inputs": read, "images": given.images or None, "audio": given.audio}
    try:
        result = model.generate(request, chosen, stream=None if given.as_json else write_out, **media)
    except KeyboardInterrupt:
        if not given.as_json:
            write_out("\n")  # its message begins a line
        raise
    if given.as_json:
        rates = {
            "prompt_tokens_per_second": result.prompt_tokens_per_second,
            "decode_tokens_per_second": result.decode_tokens_per_second,
        }
        print_json({**asdict(result), **rates})
        return
    write_out("\n")
    print_note(
        f"{result.prompt_tokens} tokens of prompt at {result.prompt_tokens_per_second:.1f}/s, "
        f"{len(result.tokens)} tokens at {result.decode_tokens_per_second:.1f}/s, ended by {result.finish_reason}"
    )


def _transcribe(model: Any, audio: Any, language: str | None, chosen: Any, *, as_json: bool) -> None:
    """Print the transcription of speech of any length."""
    from compiler.generation import transcribe

    transcript = transcribe(model, audio, chosen, language=language)
    if as_json:
        print_json(asdict(transcript))
        return
    write_out(f"{transcript.text}\n")
    spoken = f", language {transcript.language}" if transcript.language else ""
    print_note(f"{transcript.seconds:.1f} s of speech in {len(transcript.parts)} parts{spoken}")


def _messages(text: str, given: _Options) -> list[dict[str, Any]]:
    from compiler.generation.language_model import user_message

    first = [] if given.system is None else [{"role": "system", "content": given.system}]
    return [*first, user_message(text, len(given.images or ()), int(given.audio is not None))]


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on standard input is not valid UTF-8: {error}") from error
