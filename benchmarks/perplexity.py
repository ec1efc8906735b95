"""Perplexity of language models on an English text: each precision, compared with llama.cpp and float32.

    python -m benchmarks.perplexity ENGINE=PATH[,OPTION=VALUE...] ... [--text FILE] [--tokens 50000] [--context 512]
        [--python INTERPRETER] [--threads 2] [--output FILE.json]
    python -m benchmarks.perplexity --report FILE.json

`tensorwright=PATH` compiles a GGUF file or a folder; its options are those of `compile`: precision=int4,
calibration=TEXT, cache=int8. `llama.cpp=FILE.gguf` is run by `--python` in a separate process. The text is Newton's
"Opticks", which the package apache-tvm-ffi ships. It is cut into windows of the context size, each read independently;
the tokens in the second half of each are scored, with at least half of the context before them, like llama.cpp's tool.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import compiler
from compiler.artifact.language_model import TOKENIZER_ASSET
from compiler.driver.build import calibration_tokens, operand_grams
from compiler.frontends.llm import LanguageModelOptions, import_language_model

_SCRIPT = Path(__file__).with_name("_perplexity_contestant.py")
_TEXT = "3rdparty/libbacktrace/Isaac.Newton-Opticks.txt"
_OURS = "tensorwright"


def losses(logits: np.ndarray, window: np.ndarray) -> float:
    """Return the sum of negative log-likelihoods in a window's second half, for logits (tokens, vocabulary)."""
    first = len(window) // 2
    rows = logits[first - 1 : -1].astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    chosen = rows[np.arange(len(rows)), window[first:]]
    return float((np.log(np.exp(rows).sum(-1)) - chosen).sum())


def our_loss(path: Path, options: dict[str, str], windows: np.ndarray, threads: int) -> float:
    """Return the sum over all windows, for a module that returns all logits."""
    text = options.pop("calibration", None)
    language = LanguageModelOptions(**options, all_logits=True)  # type: ignore[arg-type]
    if text is not None:
        model = import_language_model(path, LanguageModelOptions(captures=True))
        tokens = calibration_tokens(Path(text), model)
        grams = operand_grams(compiler.compile(model, threads=threads, progress=None), tokens)
        language = replace(language, grams=grams)
    module = compiler.compile(import_language_model(path, language), threads=threads, progress=None)
    total = 0.0
    for window in windows:
        logits = module.session(capacity=len(window)).run({"tokens": window[None]})["logits"][0]
        total += losses(logits, window)
    return total


def peer_loss(engine: str, path: Path, windows: np.ndarray, options: argparse.Namespace) -> float:
    """Like `our_loss` for another engine."""
    command = [options.python, str(_SCRIPT), engine, str(path), str(options.threads)]
    found = subprocess.run(command, input=json.dumps(windows.tolist()), stdout=subprocess.PIPE, text=True, check=True)
    total: float = json.loads(found.stdout.splitlines()[-1])["loss"]
    return total


def windows_of(path: Path, text: str, tokens: int, context: int) -> np.ndarray:
    """Tokenize the text to (windows, context) with a model's tokenizer."""
    content = bytes(import_language_model(path).assets[TOKENIZER_ASSET]).decode()
    found = Tokenizer.from_str(content).encode(text).ids[:tokens]
    whole = len(found) // context
    return np.asarray(found[: whole * context], np.int64).reshape(whole, context)


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return a row for each contestant."""
    source = options.text or resources.files("tvm_ffi").joinpath(_TEXT)
    text = source.read_text(encoding="utf-8")
    parts = [each.partition("=") for each in options.contestants]
    tokenizer = Path(next(path for engine, _, path in parts if engine == _OURS).split(",")[0])
    windows = windows_of(tokenizer, text, options.tokens, options.context)
    scored = windows.size // 2
    for engine, _, rest in parts:
        path, *settings = rest.split(",")
        chosen = dict(each.split("=", 1) for each in settings)
        if engine == _OURS:
            loss = our_loss(Path(path), dict(chosen), windows, options.threads)
        else:
            loss = peer_loss(engine, Path(path), windows, options)
        row = {"engine": engine, "model": Path(path).stem, "options": chosen, "tokens": windows.size, "scored": scored}
        yield {**row, "perplexity": math.exp(loss / scored)}


def table_of(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["| engine | model | options | tokens | perplexity |", "| --- | --- | --- | ---: | ---: |"]
    for row in rows:
        chosen = ", ".join(f"{name} {Path(value).name}" for name, value in row["options"].items())
        cells = [row["engine"], row["model"], chosen, f"{row['tokens']:,}", f"{row['perplexity']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", metavar="ENGINE=PATH[,OPTION=VALUE...]", nargs="*")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report is not None:
        print(table_of(json.loads(options.report.read_text())))
        return
    rows = []
    for row in measured(options):
        rows.append(row)
        print(f"{row['engine']} {row['model']} {row['options']}: {row['perplexity']:.3f}", flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(rows, indent=2) + "\n")
    print(table_of(rows))


if __name__ == "__main__":
    main()
