"""Rows of `benchmarks.generate` for several sequences at once and for speculative decoding."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler.generation import LanguageModel, Scheduler, load
from compiler.generation.prompts import Prompt

_TOKENS = 64  # generated tokens per sequence, after a prompt of this many:
_PROMPT = 16
_GUESSES = 12
REPEATING: dict[str, Prompt] = {
    "code": "".join(
        f"def {name}(a, b):\n    return a {sign} b\n\n" for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"))
    ),
    "CSV": "id,name,city,active\n1,Ada,London,yes\n2,Bob,Paris,yes\n3,Carla,Rome,no\n4,Dan,London,yes\n5,",
    "JSON": '[{"id": 1, "name": "Ada", "active": true},\n {"id": 2, "name": "Bob", "active": true},\n {"id": 3, ',
}


@dataclass
class Rate:
    """Best tokens per second without and with the measured feature; `same` if the texts are equal."""

    name: str
    without: float = 0.0
    rate: float = 0.0
    same: bool = True

    @property
    def times(self) -> float:
        """Speedup."""
        return self.rate / self.without


def several(path: Path, counts: list[int], rounds: int, threads: int) -> list[Rate]:
    """Measure the throughput of several sequences at once and of one alternately, each with its own prompts."""
    model = _endless(load(path, threads=threads))
    random = np.random.default_rng(0)
    rates = [Rate(f"{count} sequences") for count in counts]
    with Scheduler(model, max_sequences=max(counts), kept=0) as scheduler:
        for _ in range(rounds):
            prompts = random.integers(3, model.description.vocabulary, (max(counts), _PROMPT)).tolist()
            alone = _together(scheduler, prompts[:1])
            for rate in rates:
                found = _together(scheduler, prompts[: int(rate.name.split()[0])])
                rate.without, rate.rate = max(rate.without, alone), max(rate.rate, found)
    return rates


def speculative(path: Path, draft: Path | None, rounds: int, threads: int) -> list[Rate]:
    """Measure repetitive texts with and without speculative decoding alternately."""
    model = _endless(load(path, threads=threads, draft=draft))
    rates = [Rate(name) for name in REPEATING]
    for _ in range(rounds):
        for rate in rates:
            without = model.generate(REPEATING[rate.name], max_new_tokens=3 * _TOKENS)
            generated = model.generate(REPEATING[rate.name], max_new_tokens=3 * _TOKENS, speculative=_GUESSES)
            rate.without = max(rate.without, without.decode_tokens_per_second)
            rate.rate = max(rate.rate, generated.decode_tokens_per_second)
            rate.same &= generated.tokens == without.tokens
    return rates


def report(paths: list[Path], options: Any) -> None:
    """Measure modules by the options `sequences` and `speculative` of the command, print tables, and write `output`."""
    tables = {}
    for path in paths:
        if options.sequences:
            tables[f"{path.name}: one sequence and several"] = several(
                path, options.sequences, options.rounds, options.threads
            )
        if options.speculative:
            tables[f"{path.name}: without guesses and with"] = speculative(
                path, options.draft, options.rounds, options.threads
            )
    for title, rates in tables.items():
        print(f"{title}, tokens per second\n\n| | without | with | times | same text |\n|---|---|---|---|---|")
        for rate in rates:
            same = "yes" if rate.same else "NO"
            print(f"| {rate.name} | {rate.without:.0f} | {rate.rate:.0f} | {rate.times:.2f} | {same} |")
        print()
    if options.output is not None:
        rows = {title: [asdict(rate) for rate in rates] for title, rates in tables.items()}
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


def _endless(model: LanguageModel) -> LanguageModel:
    """Return the model without end tokens, so that all texts are equally long."""
    model.description = msgspec.structs.replace(model.description, stop_tokens=())
    return model


def _together(scheduler: Scheduler, prompts: list[list[int]]) -> float:
    """Return total tokens per second, from the time when each has its first token."""
    handles = [scheduler.submit(prompt, max_new_tokens=_TOKENS) for prompt in prompts]
    for handle in handles:
        next(handle)
    before, begin = sum(handle.usage.generated_tokens for handle in handles), time.perf_counter()
    total = sum(len(handle.result().tokens) for handle in handles)
    return (total - before) / (time.perf_counter() - begin)
