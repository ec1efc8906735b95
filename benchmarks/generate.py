"""Language models: prompt and decode tokens per second, compared with other runtimes and memory bandwidth.

    python -m benchmarks.generate ENGINE=PATH ... [--python INTERPRETER] [--threads 2] [--rounds 5]
        [--contexts 16 512] [--output FILE.json]
    python -m benchmarks.generate --report FILE.json ...
    python -m benchmarks.generate FILE.twm ... --sequences 8 | --speculative [--draft FILE.twm]

Engines: `tensorwright` (a .twm file), `llama.cpp` (a GGUF file), `onnxruntime-genai` (a folder of its model builder),
`openvino` and `openvino-genai` (a folder with openvino_model.xml; LLMPipeline(FILE.gguf, "CPU",
enable_save_ov_model=True) writes one); each can be repeated. `benchmarks.generate_files` creates GGUF files of several
precisions from one.

Each engine runs in its own process; they alternate, so that all see the same machine, with new prompts. Each number is
from the best round. `--python` runs the other engines with another interpreter. The first token is timed from the start
of the process, including Python's own start, with files in the page cache and Python code compiled to bytecode, like
that of installed packages: the best of three.
The limit of an engine is the rate of a plain read, of the module's file as the module maps it, in the same run over the
bytes of its weights.
`--report` prints tables of earlier runs. `--sequences` compares several sequences at once with one, and `--speculative`
measures speculation on repetitive texts, for modules compiled with `--sequences`.
"""

from __future__ import annotations

import argparse
import json
import os
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

from benchmarks._generate_sequences import report
from benchmarks.block_products import reader
from compiler.artifact import read_artifact
from compiler.artifact.language_model import DESCRIPTION_ASSET

_SCRIPT = Path(__file__).with_name("_generate_contestant.py")
_STEPS = 32  # tokens per measurement
_STARTS = 3
_READS = 10  # of the module's file, timed together: a measurement of tokens is as long
_OURS = "tensorwright"


@dataclass
class Contestant:
    """A runtime's process, and its best times so far.

    Attributes:
        environment: environment of its process.
        weight_bytes: bytes read for each token.
        first_token: seconds from the start of its process.
        prompt: seconds of a prompt by its number of tokens.
        decode: seconds of a token by the number of preceding tokens.
    """

    engine: str
    path: Path
    command: list[str]
    environment: dict[str, str]
    weight_bytes: int
    process: subprocess.Popen[str] | None = None
    first_token: float = np.inf
    peak_bytes: int = 0
    prompt: dict[int, float] = field(default_factory=dict)
    decode: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Restart it and wait for its first token."""
        self.end()
        pipe = subprocess.PIPE
        begin = time.perf_counter()
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True, env=self.environment)
        self._answer()
        self.first_token = min(self.first_token, time.perf_counter() - begin)

    def end(self) -> None:
        """End its process."""
        if self.process is not None:
            self.process.communicate()

    def measure(self, tokens: list[int]) -> None:
        """Measure one prompt, and the tokens generated after it."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"tokens": tokens, "count": _STEPS}) + "\n")
        self.process.stdin.flush()
        answer, size = self._answer(), len(tokens)
        self.prompt[size] = min(self.prompt.get(size, np.inf), answer["prompt"])
        self.decode[size] = min(self.decode.get(size, np.inf), answer["decode"] / _STEPS)
        self.peak_bytes = answer["peak_bytes"]

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.engine} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def row(self) -> dict[str, Any]:
        """Return the results as JSON fields."""
        return {
            "engine": self.engine,
            "model": _model_name(self.path),
            "weight_bytes": self.weight_bytes,
            "first_token_s": self.first_token,
            "peak_bytes": self.peak_bytes,
            "prompt_s": self.prompt,
            "decode_s": self.decode,
        }


def _model_name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _weight_bytes(engine: str, path: Path) -> int:
    """Return the bytes of a module's parameters, or of the others' weight files."""
    if engine == _OURS:
        return read_artifact(path).parameter_bytes
    if path.is_dir():
        return sum(
            file.stat().st_size for pattern in ("*.onnx.data", "openvino_model.bin") for file in path.glob(pattern)
        )
    return path.stat().st_size


def race(
    contestants: Sequence[Contestant],
    contexts: Sequence[int],
    rounds: int,
    vocabulary: int,
    threads: int,
    mapped: Path,
) -> float:
    """Measure all alternately, each round with new prompts; return the bytes per second of a plain read of a file."""
    random = np.random.default_rng(0)
    memory = np.memmap(mapped, np.uint64, "r", shape=mapped.stat().st_size // 8)
    best = np.inf
    for _ in range(_STARTS):
        for each in contestants:
            each.start()
    with tempfile.TemporaryDirectory() as folder:
        read = reader(Path(folder))
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(_READS):
                read(memory.ctypes.data, memory.size, threads)
            best = min(best, (time.perf_counter() - begin) / _READS)
            for size in contexts:
                for each in contestants:
                    each.measure(random.integers(3, vocabulary, size).tolist())
    for each in contestants:
        each.end()
    return memory.nbytes / best


def table_of(found: dict[str, Any]) -> str:
    """Format a run as a Markdown table: tokens per second, and other figures of each engine."""
    contexts = [int(size) for size in found["engines"][0]["decode_s"]]
    head = ["engine", "weights", "MB", *(f"after {size}" for size in contexts)]
    head += [
        *(f"prompt of {size}" for size in contexts if size > 16),
        "of the limit",
        "falls by",
        "first token, s",
        "peak, MB",
    ]
    rows = []
    for engine in found["engines"]:
        decode = [engine["decode_s"][size] for size in sorted(engine["decode_s"], key=int)]
        prompt = [int(size) / seconds for size, seconds in engine["prompt_s"].items() if int(size) > 16]
        limit = found["read_bytes_s"] / engine["weight_bytes"]
        cells = [engine["engine"], engine["model"], f"{engine['weight_bytes'] / 1e6:.0f}"]
        cells += [*(f"{1 / seconds:.1f}" for seconds in decode), *(f"{number:.0f}" for number in prompt)]
        cells += [f"{1 / decode[0] / limit:.0%}", f"{1 - decode[0] / decode[-1]:.0%}"]
        cells += [f"{engine['first_token_s']:.2f}", f"{engine['peak_bytes'] / 1e6:.0f}"]
        rows.append(cells)
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def contestant(text: str, options: argparse.Namespace, context: int, bytecode: str) -> Contestant:
    """Create the contestant named by "ENGINE=PATH"; `bytecode` is the folder for Python's bytecode."""
    engine, _, path = text.partition("=")
    if not path:
        raise SystemExit(f"{text!r} is not ENGINE=PATH")
    interpreter = sys.executable if engine == _OURS else options.python
    command = [interpreter, str(_SCRIPT), engine, path, str(options.threads), str(context)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    return Contestant(engine, Path(path), command, environment, _weight_bytes(engine, Path(path)))


def main() -> None:
    """Time the engines and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", metavar="ENGINE=PATH", nargs="*")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--report", type=Path, nargs="+")
    parser.add_argument("--sequences", type=int, nargs="+", metavar="N")
    parser.add_argument("--speculative", action="store_true")
    parser.add_argument("--draft", type=Path)
    options = parser.parse_args()
    if options.sequences or options.speculative:
        report([Path(each.rpartition("=")[2]) for each in options.contestants], options)
        return
    if options.report is not None:
        for path in options.report:
            print(f"{path.name}:\n\n{table_of(json.loads(path.read_text()))}\n")
        return
    context = max(options.contexts) + _STEPS + 1
    bytecode = tempfile.TemporaryDirectory()
    contestants = [contestant(text, options, context, bytecode.name) for text in options.contestants]
    ours = next((each.path for each in contestants if each.engine == _OURS), None)
    if ours is None:
        raise SystemExit("name a module to compare: tensorwright=FILE.twm")
    vocabulary = json.loads(read_artifact(ours).assets[DESCRIPTION_ASSET].tobytes())["vocabulary"]
    with bytecode:
        read = race(contestants, options.contexts, options.rounds, vocabulary, options.threads, ours)
    results = {"read_bytes_s": read, "threads": options.threads, "engines": [each.row() for each in contestants]}
    results = json.loads(json.dumps(results))
    Console().print(f"a plain read gives {read / 1e9:.1f} GB/s")
    print(table_of(results))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
