"""The interrupts suite: SIGINT at a random moment of a call ends it as KeyboardInterrupt, and leaves nothing behind.

Each call runs in a process of its own, forked from a worker that has everything loaded. Left behind are files in the
folder for temporary ones or beside the results, a module, processes, and handlers of signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import random
import select
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np
import onnx
import psutil
import torch

import compiler
import compiler.compression.quantization
import compiler.driver.compile
import compiler.searching.search
import compiler.tuning.tune
from compiler.generation import LanguageModel
from tests.compiler.generation.models import write_folder
from tests.compiler.searching.nets import tiny
from tests.fuzz.detector import detector
from tests.fuzz.outcome import Outcome
from tests.fuzz.tuning import convolution_model

MEMORY_BYTES = 64 << 30  # of address space: XLA and torch reserve much of it
SECONDS = 600.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
_GRACE_SECONDS = 20.0
_LIMIT_SECONDS = 240.0
_ATTEMPTS = 100  # at moments that are drawn anew: calls that end before their interrupt show nothing
_SETTLES_SECONDS = 0.2  # a signal that was sent while the call ran has reached its process by then
_INTERRUPTED, _FINISHED, _UNHEARD = b"i", b"f", b"u"
_FINISHED_BEFORE = "it had ended before"
_SIDE = 32  # of the images of the convolutions


@dataclass(frozen=True)
class Sources:
    """Arguments of the calls."""

    net: Path
    language_model: Path


def prepare(folder: Path) -> Sources:
    """Writes the models."""
    sources = Sources(folder / "net.onnx", folder / "language.twm")
    onnx.save(detector(_SIDE), str(sources.net))
    model = folder / "language"
    model.mkdir()
    compiler.compile(write_folder(model), threads=1).export(sources.language_model)
    return sources


def _compile(sources: Sources, folder: Path) -> None:
    compiler.compile(sources.net, threads=1, records=False).export(folder / "net.twm")


def _quantize(sources: Sources, folder: Path) -> None:
    samples = [{"x": np.random.default_rng(seed).random((1, 3, _SIDE, _SIDE), np.float32)} for seed in range(2)]
    compiler.compile(compiler.quantize(sources.net, samples, threads=1), threads=1).export(folder / "net.twm")


def _tune(sources: Sources, folder: Path) -> None:
    options = {"threads": 1, "timing": "serial", "cost_model": "random", "search": "random"}
    compiler.tune(convolution_model(), trials=3, records=folder / "records", **options)  # type: ignore[arg-type]


def _nearness_to_zero(run: Any) -> float:
    return -float(np.abs(next(iter(run({"image": np.zeros((1, 1, 8, 8), np.float32)}).values()))).sum())


def _search(sources: Sources, folder: Path) -> None:
    torch.set_num_threads(1)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = compiler.search(
        tiny(),
        {"mb": 0.01},
        space={"channels": [0.5], "precision": ["int8", "float32"]},
        batches=[(images, (images.mean((1, 2, 3)) > 0).long())],
        epochs=1,
        trials=2,
        finalists=1,
        evaluate=_nearness_to_zero,
        example_inputs=[torch.zeros(1, 1, 8, 8)],
        threads=1,
    )
    result.module.export(folder / "net.twm")


def _generate(sources: Sources, folder: Path) -> None:
    model = LanguageModel(compiler.load(sources.language_model))
    for seed in range(100):
        model.generate("some words", max_new_tokens=64, temperature=1.0, seed=seed)


_CALLS: dict[str, Any] = {  # functions of Sources, and of a folder for results
    "compile": _compile,
    "quantize": _quantize,
    "tune": _tune,
    "search": _search,
    "generate": _generate,
}
_ORDER = ("compile", "generate", "compile", "quantize", "compile", "generate", "compile", "tune", "compile", "search")
_durations: dict[str, float] = {}


def case(sources: Sources, seed: int) -> Outcome:
    """Interrupt one call; again at another moment where it had ended before, since durations vary."""
    name = _ORDER[seed % len(_ORDER)]
    if name not in _durations:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process
        problem, _durations[name] = _run(sources, name, None)
        if problem != _FINISHED_BEFORE:
            raise RuntimeError(f"{name} fails without an interrupt: {problem}")
    random_, problem = random.Random(seed), _FINISHED_BEFORE
    for _ in range(_ATTEMPTS):
        problem, took = _run(sources, name, random_.random() * _durations[name])
        if problem != _FINISHED_BEFORE:
            return Outcome("wrong", name, problem) if problem else Outcome("right", name)
        _durations[name] = took
    return Outcome("unchecked", name, problem)


def _run(sources: Sources, name: str, moment: float | None) -> tuple[str, float]:
    """Run a call in a process, and interrupt it so many seconds after it began: what is wrong, and what it took."""
    sent = math.inf
    with tempfile.TemporaryDirectory(prefix="interrupts-") as place:
        results, temporary = Path(place, "results"), Path(place, "temporary")
        results.mkdir()
        temporary.mkdir()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _call(_CALLS[name], sources, results, temporary, writer)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as stream:
            stream.read(1)
            began = time.monotonic()
            if moment is not None and not select.select([stream], [], [], moment)[0]:
                os.kill(child, signal.SIGINT)
                sent = time.monotonic()
            ended = select.select([stream], [], [], _LIMIT_SECONDS)[0]
            took = time.monotonic() - began
            answer = stream.read(4096) if ended else b"it went on"
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return _problem(answer, sent, results, temporary), took


def _problem(answer: bytes, sent: float, results: Path, temporary: Path) -> str:
    left = [each for each in psutil.Process().children(recursive=True) if not each.name().startswith("resource_track")]
    _, alive = psutil.wait_procs(left, timeout=_GRACE_SECONDS)
    for process in alive:
        process.kill()
    if answer.startswith(_UNHEARD):
        return "the interrupt was lost: no handler was called" if sent < float(answer[1:]) else _FINISHED_BEFORE
    if answer == _FINISHED:
        return _FINISHED_BEFORE
    if answer != _INTERRUPTED:
        return answer.decode(errors="replace") or "the process died"
    if alive:
        return f"processes are left: {', '.join(' '.join(each.cmdline())[:60] for each in alive)}"
    cache = (temporary.parent / "cache").glob("*/*-*")  # of entries that were not finished
    files = [each.relative_to(temporary.parent) for each in (*results.rglob("*"), *temporary.rglob("*"), *cache)]
    # Records of a tuning are what it is to leave, and PyTorch makes a folder of its own that stays.
    files = [each for each in files if each.parts[:2] != ("results", "records") and "inductor" not in str(each)]
    return f"files are left: {', '.join(map(str, files[:5]))}" if files else ""


class _Handler:
    """The caller's handler of SIGINT: raises KeyboardInterrupt while the call runs; before and after that, a signal
    interrupts nothing but this suite, and is ignored."""

    def __init__(self, call: CodeType) -> None:
        self._call = call
        self.called = self.raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.called = True
        held_back = frame is None  # by the call, and handed on at its end
        while frame is not None and frame.f_code is not self._call:
            frame = frame.f_back
        if frame is not None or held_back:
            self.raised = True
            raise KeyboardInterrupt


def _call(call: FunctionType, sources: Sources, results: Path, temporary: Path, writer: int) -> None:
    """The child's life."""
    answer = b""
    try:
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.environ["TENSORWRIGHT_CACHE"] = str(temporary.parent / "cache")
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have children
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        handler = _Handler(call.__code__)
        signal.signal(signal.SIGINT, handler)
        before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
        os.write(writer, b"b")
        try:
            call(sources, results)
            ended = time.monotonic()
            time.sleep(_SETTLES_SECONDS)
            answer = _UNHEARD + str(ended).encode() if not handler.called else _FINISHED
            answer = b"the interrupt was lost: the call returned" if handler.raised else answer
        except KeyboardInterrupt:
            answer = _INTERRUPTED
        if signal.getsignal(signal.SIGINT) is not handler:
            answer = b"a handler of SIGINT is left"
        elif (signal.getsignal(signal.SIGTERM), sys.unraisablehook) != before:
            answer = b"a handler is left"
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"[:1000].encode()
    finally:
        os.write(writer, answer)
        os._exit(0)
