"""Language models of each family, small and random, against transformers: logits and greedy tokens."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import compiler
from compiler.errors import InvalidModelError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.transformers_decoder import capture_decoder
from compiler.generation import LanguageModel
from compiler.generation.steps import Chunk
from tests.compiler.frontends.llm.encoder_models import (
    ENCODER_MODELS,
    START,
    encoder_greedy,
    encoder_input,
    media_prompt,
    save_encoder_model,
)
from tests.compiler.frontends.llm.families import CAPTURED, FAMILIES, greedy, save_model
from tests.coverage.causal_classes import classes, table

_STEPS = 64
_TOLERANCE = 2e-5  # relative to the largest logit
_DISTINCT = 4  # a model that repeats one token proves little


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Families, and lengths of prompts."""
    known = ", ".join([*FAMILIES, *CAPTURED, *ENCODER_MODELS])
    parser.add_argument("names", nargs="*", help=f"some of {known}; all when none is given")
    parser.add_argument(
        "--captured", action="store_true", help="take transformers' own code, captured, for all of them"
    )
    parser.add_argument(
        "--classes", action="store_true", help="all classes of transformers (or the named types), with small defaults"
    )
    parser.add_argument("--json", type=Path, help="rows of --classes, to go on with")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 7, 128, 513])


def main(options: argparse.Namespace) -> int:
    """Print a line for each family; return 1 if one differs. A family whose folders are refused is no difference."""
    if options.classes:
        return table(options.names or classes(), options.json)
    wrong = 0
    for name in options.names or [*FAMILIES, *CAPTURED, *ENCODER_MODELS]:
        if name in ENCODER_MODELS:
            wrong += _encoder_line(name, options.prompts)
            continue
        try:
            errors = differences(name, options.prompts, captured=options.captured)
        except InvalidModelError as error:
            print(f"refused {name}: {error.message}", flush=True)
            continue
        differs = any(error > _TOLERANCE or same < _STEPS for error, same in errors)
        wrong += differs
        text = ", ".join(
            f"{size}: {error:.1e} and {same} of {_STEPS} tokens"
            for size, (error, same) in zip(options.prompts, errors, strict=True)
        )
        print(f"{'WRONG' if differs else 'equal'} {name}: {text}", flush=True)
    return int(wrong > 0)


def _encoder_line(name: str, prompts: list[int]) -> bool:
    found = encoder_differences(name, prompts)
    differs = any(error > _TOLERANCE or same < _STEPS or distinct < _DISTINCT for error, same, distinct in found)
    text = ", ".join(
        f"{size}: {error:.1e} and {same} of {_STEPS} tokens, {distinct} distinct"
        for size, (error, same, distinct) in zip(prompts, found, strict=False)
    )
    print(f"{'WRONG' if differs else 'equal'} {name}: {text}", flush=True)
    return differs


def differences(name: str, prompts: list[int], *, captured: bool = False) -> list[tuple[float, int]]:
    """Per prompt length, the largest logit error (relative to the largest logit) and the number of equal tokens."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        reference = save_model(name, Path(folder))
        model = _captured(Path(folder)) if captured else import_language_model(Path(folder))
        module = compiler.compile(model, progress=None)
        takes_capacity = any("capacity" in each.shape for each in module.inputs)
        for size in prompts:
            prompt = np.random.default_rng(size).integers(1, reference.config.vocab_size, size)
            wanted, tokens = greedy(reference, prompt, _STEPS)
            session = module.session(capacity=size + _STEPS if takes_capacity else None)
            step, worst, same = prompt, 0.0, 0
            for row, token in zip(wanted, tokens, strict=True):
                logits = session.run([step[None]])["logits"][0, 0]
                worst = max(worst, float(abs(logits - row).max() / abs(row).max()))
                same += int(logits.argmax()) == token
                step = np.array([token])
            found.append((worst, same))
    return found


def encoder_differences(name: str, prompts: list[int]) -> list[tuple[float, int, int]]:
    """Like `differences` for a model with an encoder, and the number of distinct tokens. A prompt is that of the
    decoder, behind an image where the model reads images, or the text that the encoder reads."""
    found = []
    reads, transcribes = ENCODER_MODELS[name].reads, name.startswith("whisper")
    with tempfile.TemporaryDirectory() as folder:
        reference = save_encoder_model(name, Path(folder), 640)
        model = LanguageModel(compiler.compile(folder, images=True, progress=None))
        for size in prompts:
            if transcribes and size + _STEPS > model.description.context:
                continue
            random = np.random.default_rng(size)
            text = random.integers(1, 250, size).tolist()
            inputs = encoder_input(name, random, size if reads == "input_ids" else 1)
            prompt = [START] if reads == "input_ids" else text if transcribes else [*media_prompt(name, 1), *text]
            wanted, tokens = encoder_greedy(reference, prompt, _STEPS, **inputs)
            steps = model.steps(1, len(prompt) + _STEPS)
            steps.attach(0, model.encoded(inputs, prompt))
            chunk, worst, same = Chunk(0, prompt, 0, len(prompt), is_prompt=True, logits=1), 0.0, 0
            for row, token in zip(wanted, tokens, strict=True):
                logits = steps.run([chunk])[0][0]
                worst = max(worst, float(abs(logits - row).max() / abs(row).max()))
                never = list(model.description.suppressed)
                same += int(np.argmax(np.where(np.isin(np.arange(len(logits)), never), -np.inf, logits))) == token
                position = chunk.position + len(chunk.tokens)
                chunk = Chunk(0, [token], position, position + 1, is_prompt=False, logits=1)
            found.append((worst, same, len(set(tokens))))
    return found


def _captured(folder: Path) -> ImportedModel:
    return capture_decoder(folder, LanguageModelOptions()).model
