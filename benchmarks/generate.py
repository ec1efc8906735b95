"""Language models: prompts and tokens a second, beside other engines and what memory gives.

    python -m benchmarks.generate MODULE.twm [--llama-cpp FILE.gguf] [--onnxruntime-genai FOLDER] [--openvino FOLDER]
        [--python INTERPRETER] [--threads 2] [--rounds 5] [--contexts 16 512] [--output FILE.json]

Each engine runs in a process of its own; they take turns, so that all see the same machine, with prompts that none has
seen before. Of each number the best round is taken. `--python` runs the other engines by another interpreter. The
limit is the bytes of weights over what a plain read of memory gives in the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.block_products import reader
from compiler.artifact import read_artifact
from compiler.artifact.language_model import DESCRIPTION_ASSET

_SCRIPT = Path(__file__).with_name("_generate_contestant.py")
_READ_BYTES = 256 << 20
_STEPS = 32  # tokens of one measurement


@dataclass
class Contestant:
    """An engine's process, and its best times so far.

    Attributes:
        prompt: seconds of a prompt by its number of tokens.
        decode: seconds of a token by the number of tokens before.
    """

    name: str
    process: subprocess.Popen[str]
    first_token: float = 0.0
    peak_bytes: int = 0
    prompt: dict[int, float] = field(default_factory=dict)
    decode: dict[int, float] = field(default_factory=dict)

    def ask(self, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request; without one what the process says first."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if request is not None:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, tokens: list[int]) -> None:
        """One prompt, and the tokens behind it."""
        size = len(tokens)
        found = self.ask({"run": "prompt", "tokens": tokens})
        self.prompt[size] = min(self.prompt.get(size, np.inf), found["seconds"])
        found = self.ask({"run": "decode", "count": _STEPS})
        self.decode[size] = min(self.decode.get(size, np.inf), found["seconds"] / _STEPS)
        self.peak_bytes = found["peak_bytes"]


def started(name: str, path: Path, interpreter: str, threads: int, context: int) -> Contestant:
    """A process that has loaded its model."""
    arguments = [interpreter, str(_SCRIPT), name, str(path), str(threads), str(context)]
    pipe = subprocess.PIPE
    contestant = Contestant(name, subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True))
    contestant.first_token = contestant.ask()["first_token"]
    return contestant


def race(
    contestants: Sequence[Contestant], contexts: Sequence[int], rounds: int, vocabulary: int, threads: int
) -> float:
    """Measure all in turn, each round with prompts of its own; the bytes a second of a plain read of memory."""
    random = np.random.default_rng(0)
    memory = np.ones(_READ_BYTES // 8, np.uint64)
    best = np.inf
    with tempfile.TemporaryDirectory() as folder:
        read = reader(Path(folder))
        for _ in range(rounds):
            begin = time.perf_counter()
            read(memory.ctypes.data, memory.size, threads)
            best = min(best, time.perf_counter() - begin)
            for size in contexts:
                tokens = random.integers(3, vocabulary, size).tolist()
                for each in contestants:
                    each.measure(tokens)
    return _READ_BYTES / best


def table_of(contestants: Sequence[Contestant], contexts: Sequence[int], limit: float) -> Table:
    """A line for each engine; `limit`: tokens a second that memory allows."""
    table = Table(title=f"tokens a second; memory would give {limit:.0f} for one token a step")
    for column in ("engine", *(f"after {size}" for size in contexts), *(f"prompt of {size}" for size in contexts)):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for column in ("of the limit", "first token s", "peak MB"):
        table.add_column(column, justify="right")
    for each in contestants:
        decode = [f"{1 / each.decode[size]:.1f}" for size in contexts]
        prompt = [f"{size / each.prompt[size]:.0f}" for size in contexts]
        share = f"{1 / each.decode[contexts[0]] / limit:.0%}"
        table.add_row(each.name, *decode, *prompt, share, f"{each.first_token:.2f}", f"{each.peak_bytes / 1e6:.0f}")
    return table


def main() -> None:
    """Race the engines and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    for name in ("llama-cpp", "onnxruntime-genai", "openvino"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    artifact = read_artifact(options.module)
    weights = artifact.parameter_bytes
    vocabulary = json.loads(artifact.assets[DESCRIPTION_ASSET].tobytes())["vocabulary"]
    context = max(options.contexts) + _STEPS + 1
    peers = {
        "llama.cpp": options.llama_cpp,
        "onnxruntime-genai": options.onnxruntime_genai,
        "openvino": options.openvino,
    }
    contestants = [started("tensorwright", options.module, sys.executable, options.threads, context)]
    contestants += [
        started(name, path, options.python, options.threads, context)
        for name, path in peers.items()
        if path is not None
    ]
    limit = race(contestants, options.contexts, options.rounds, vocabulary, options.threads) / weights
    Console().print(table_of(contestants, options.contexts, limit))
    if options.output is not None:
        rows = [{key: value for key, value in vars(each).items() if key != "process"} for each in contestants]
        options.output.write_text(json.dumps({"weight_bytes": weights, "limit": limit, "engines": rows}, indent=2))
    for each in contestants:
        assert each.process.stdin is not None
        each.process.stdin.close()
        each.process.wait()


if __name__ == "__main__":
    main()
