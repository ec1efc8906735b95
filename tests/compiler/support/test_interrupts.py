"""Interrupts end a guarded function at any point, with the exception of the caller's handler."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import tvm_ffi

import schedules.ir.load_tvm  # noqa: F401  (registers what callbacks may raise)
from compiler.support.interrupts import interruptible, raise_if_interrupted, uninterrupted

_LIMIT = 120  # seconds until a test is taken to hang


@pytest.fixture(autouse=True)
def _the_usual_handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before[0])
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before[1:]


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)


def _swallow() -> None:
    with contextlib.suppress(BaseException):
        _interrupt()


def _translated() -> None:
    try:
        _interrupt()
    except BaseException as error:
        raise RuntimeError("of a callback") from error


def _in_callback() -> None:
    tvm_ffi.convert(_interrupt)()


@pytest.mark.parametrize("body", [_interrupt, _swallow, _translated, _in_callback])
def test_an_interrupt_ends_the_function_and_the_handler_is_the_callers_again(body: Callable[[], None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interruptible(body)()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_callback_of_tvm_hands_interrupts_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        _in_callback()


def test_a_lost_interrupt_is_raised_at_the_next_check_and_by_functions_inside() -> None:
    went_on = []

    def body() -> None:
        _swallow()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
        with pytest.raises(KeyboardInterrupt):
            interruptible(int)()
        went_on.append(True)

    with pytest.raises(KeyboardInterrupt):
        interruptible(body)()
    assert went_on


def test_what_python_drops_is_raised_again() -> None:
    class Callback:
        def __del__(self) -> None:
            _interrupt()

    went_on = []

    def body() -> None:
        Callback()
        went_on.append(True)
        time.sleep(_LIMIT)

    with pytest.raises(KeyboardInterrupt):
        interruptible(body)()
    assert went_on


def test_files_are_made_and_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = tempfile.TemporaryDirectory._rmtree  # type: ignore[attr-defined]

    def interrupted(*args: object, **kwargs: object) -> None:
        _interrupt()
        rmtree(*args, **kwargs)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "_rmtree", staticmethod(interrupted))

    def body() -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            (Path(folder) / "file").touch()
        time.sleep(_LIMIT)

    with pytest.raises(KeyboardInterrupt):
        interruptible(body)()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_waits_at_the_end_is_raised_there() -> None:
    done = []

    @uninterrupted
    def last() -> None:
        _interrupt()
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        interruptible(last)()
    assert done


class _TimeIsUpError(Exception):
    pass


def test_a_handler_of_the_callers_own_decides() -> None:
    seen = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 2:
            raise _TimeIsUpError

    signal.signal(signal.SIGINT, note)
    interruptible(_interrupt)()
    assert len(seen) == 1
    with pytest.raises(_TimeIsUpError):
        interruptible(_translated)()
    assert signal.getsignal(signal.SIGINT) is note
    assert seen == [signal.SIGINT] * 2


def test_other_threads_and_ignored_signals_are_left_alone() -> None:
    found = []

    def body() -> None:
        found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=interruptible(body))
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruptible(body)()
    interruptible(_interrupt)()
    assert found == [signal.default_int_handler, signal.SIG_IGN]


def test_a_forked_process_has_the_callers_handler() -> None:
    def body() -> int:
        process = multiprocessing.get_context("fork").Process(target=_interrupt)
        process.start()
        process.join(_LIMIT)
        return process.exitcode or 0

    assert interruptible(body)() == 1


def test_a_handler_that_the_function_sets_stays() -> None:
    def other(number: int, frame: FrameType | None) -> None:
        """Do nothing."""

    interruptible(lambda: signal.signal(signal.SIGINT, other))()
    assert signal.getsignal(signal.SIGINT) is other
