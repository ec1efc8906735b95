"""Decoder language models of each family, small and random, against transformers: logits and greedy tokens."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import compiler
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.transformers_decoder import capture_decoder
from tests.compiler.frontends.llm.families import CAPTURED, FAMILIES, greedy, save_model

_STEPS = 64
_TOLERANCE = 2e-5  # of the largest logit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which families, and how long the prompts are."""
    known = ", ".join([*FAMILIES, *CAPTURED])
    parser.add_argument("names", nargs="*", help=f"some of {known}; all when none is given")
    parser.add_argument(
        "--captured", action="store_true", help="take transformers' own code, captured, for all of them"
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 7, 128, 513])


def main(options: argparse.Namespace) -> int:
    """A line for each family; 1 where one differs."""
    wrong = 0
    for name in options.names or [*FAMILIES, *CAPTURED]:
        errors = differences(name, options.prompts, captured=options.captured)
        differs = any(error > _TOLERANCE or same < _STEPS for error, same in errors)
        wrong += differs
        text = ", ".join(
            f"{size}: {error:.1e} and {same} of {_STEPS} tokens"
            for size, (error, same) in zip(options.prompts, errors, strict=True)
        )
        print(f"{'WRONG' if differs else 'equal'} {name}: {text}", flush=True)
    return int(wrong > 0)


def differences(name: str, prompts: list[int], *, captured: bool = False) -> list[tuple[float, int]]:
    """For each length of a prompt the largest error of the logits, of the largest logit, and how many tokens agree."""
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


def _captured(folder: Path) -> ImportedModel:
    return capture_decoder(folder, LanguageModelOptions()).model
