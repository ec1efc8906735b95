"""Another runtime of `benchmarks.perplexity`, run by an interpreter that has it: windows of tokens in, a loss out.

It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def llama_cpp_logits(path: str, threads: int, context: int) -> Any:
    """A function from the tokens of a window to their logits."""
    from llama_cpp import Llama

    model = Llama(
        path, n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
    )

    def logits(tokens: list[int]) -> np.ndarray:
        model.reset()
        model.eval(tokens)
        return model.scores[: len(tokens)]

    return logits


def main() -> None:
    """The loss of the second half of each window."""
    engine, path, threads = sys.argv[1:]
    windows = json.load(sys.stdin)
    logits = {"llama.cpp": llama_cpp_logits}[engine](path, int(threads), len(windows[0]))
    loss = 0.0
    for window in windows:
        first = len(window) // 2
        rows = logits(window)[first - 1 : -1].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), window[first:]]
        loss += float((np.log(np.exp(rows).sum(-1)) - chosen).sum())
    print(json.dumps({"loss": loss}))


if __name__ == "__main__":
    main()
