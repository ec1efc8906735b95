"""The main workflow on real models: compile, save, load, run, compare with ONNX Runtime; a language
model; and a detector, whose boxes are drawn in a picture.

Run it with `make demo`, or with `python -m examples.demo` if the extras `peers` and `demo` and the packages in
`examples/model_packages.txt` are installed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import tensorwright
from benchmarks._models import Task
from benchmarks._race import Entry, race
from compiler.runtime.prediction import Detections
from examples import faces, language, sentences, speech

Array = np.ndarray
PICTURE = Path("build/demo/faces.jpg")
THREADS = min(2, os.cpu_count() or 1)


@dataclass
class Job:
    """A model, its compiled module, and an ONNX Runtime session for comparison."""

    name: str
    path: Path
    folder: Path
    module: tensorwright.Module
    compile_seconds: float
    session: Any
    inputs: dict[str, Array] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the compiled module, and keep the inputs for timing."""
        self.inputs = dict(inputs)
        return self.module.run(inputs)

    def run_reference(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return ONNX Runtime's outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, dict(inputs)), strict=True))

    @property
    def artifact(self) -> Path:
        return self.folder / f"{self.name}.twm"


def prepare(name: str, path: Path, folder: Path, console: Console, *, reference_inputs: Any, shapes: Any = None) -> Job:
    """Compile a model, export it, and load the exported file."""
    console.print(f"[bold]{name}[/]: compiling {path.name} ({path.stat().st_size / 1e6:.1f} MB)")
    start = time.perf_counter()
    module = tensorwright.compile(path, shapes=shapes, threads=THREADS, reference_inputs=reference_inputs)
    seconds = time.perf_counter() - start
    artifact = folder / f"{name}.twm"
    module.export(artifact)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    console.print(f"  {seconds:.1f} s; module of {artifact.stat().st_size / 1e6:.1f} MB")
    return Job(name, path, folder, tensorwright.load(artifact, verify=True), seconds, session)


def embed_sentences(job: Job, console: Console) -> float:
    """Print the most similar sentence for each; return the largest difference from ONNX Runtime's embeddings."""
    ours = sentences.embed(lambda tokens: job.run(tokens)["last_hidden_state"])
    theirs = sentences.embed(lambda tokens: job.run_reference(tokens)["last_hidden_state"])
    for row, (index, cosine) in enumerate(sentences.nearest(ours)):
        console.print(f"  {sentences.SENTENCES[row]!r} is nearest to {sentences.SENTENCES[index]!r} ({cosine:.2f})")
    return float(np.abs(ours - theirs).max())


def detect_speech(job: Job, console: Console) -> float:
    """Print the speech segments; return the largest difference from ONNX Runtime's probabilities."""
    samples = speech.read_recording()
    ours = speech.speech_probabilities(job.run, samples)
    theirs = speech.speech_probabilities(job.run_reference, samples)
    for start, end in speech.segments(ours):
        console.print(f"  speech from {start:.2f} s to {end:.2f} s")
    return float(np.abs(ours - theirs).max())


def timing_table(jobs: list[tuple[Job, float]], console: Console) -> None:
    """Print agreement and speed; each runtime runs in its own process."""
    table = Table(title=f"{THREADS} threads, median time of a run; each in its own process, alternating")
    for column in ("model", "largest difference", "Tensorwright ms", "ONNX Runtime ms", "ratio", "compile s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for job, difference in jobs:
        inputs = job.folder / f"{job.name}.npz"
        np.savez(inputs, **job.inputs)  # type: ignore[arg-type]
        entries = [Entry("tensorwright", job.artifact), Entry("onnxruntime", job.path)]
        results = race(Task(job.name, job.path, inputs, None, 0), entries, THREADS, rounds=3, seconds=0.6)
        ours, theirs = (result.seconds("median") * 1e3 for result in results)
        row = f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.2f}", f"{job.compile_seconds:.1f}"
        table.add_row(job.name, f"{difference:.1e}", *row)
    console.print(table)


def answer_question(folder: Path, console: Console) -> None:
    """Compile a language model, load it from its file, and print its answer as it is generated."""
    path, artifact = language.model_path(), folder / "smollm2.twm"
    console.print(f"[bold]smollm2[/]: compiling {path.name} ({path.stat().st_size / 1e6:.1f} MB)")
    start = time.process_time()
    tensorwright.compile(path, threads=THREADS).export(artifact)
    seconds = time.process_time() - start
    console.print(f"  {seconds:.1f} s of processor time; module of {artifact.stat().st_size / 1e6:.1f} MB")
    model = tensorwright.generation.load(artifact)
    console.print(f"  {language.QUESTION} ", end="")
    messages = [{"role": "user", "content": language.QUESTION}]
    result = model.generate(messages, stream=lambda text: console.print(text, end="", markup=False), max_new_tokens=64)
    console.print(f"\n  {len(result.tokens)} tokens, {result.decode_tokens_per_second:.0f} tokens/s")


def find_faces(console: Console) -> None:
    """Compile a detector with the processing in its metadata, and write a picture with the detected boxes."""
    path = faces.model_path()
    console.print(f"[bold]faces[/]: compiling {path.name} ({path.stat().st_size / 1e6:.1f} MB)")
    start = time.perf_counter()
    module = tensorwright.compile(path, processing="auto", threads=THREADS)
    console.print(f"  {time.perf_counter() - start:.1f} s")
    detections = module.predict(faces.picture_path())
    assert isinstance(detections, Detections)
    for name, score, box in detections:
        console.print(f"  {name} {score:.2f} at {', '.join(f'{edge:.0f}' for edge in box)}")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    detections.save(PICTURE)
    console.print(f"  wrote {PICTURE}")


def main() -> None:
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tensorwright-demo-") as name:
        folder = Path(name)
        results: list[tuple[Job, float]] = []
        tokens = sentences.tokenize(sentences.SENTENCES)
        minilm = prepare("minilm-int8", sentences.model_path(), folder, console, reference_inputs=tokens)
        results.append((minilm, embed_sentences(minilm, console)))
        frame = speech.first_frame()
        shapes = {name: array.shape for name, array in frame.items()}
        silero = prepare("silero-vad", speech.model_path(), folder, console, reference_inputs=frame, shapes=shapes)
        results.append((silero, detect_speech(silero, console)))
        console.print(f"onnxruntime {onnxruntime.__version__}, tensorwright {tensorwright.__version__}")
        timing_table(results, console)
        answer_question(folder, console)
    find_faces(console)


if __name__ == "__main__":
    main()
