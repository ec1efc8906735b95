"""Ctrl-C ends a call of the public API with KeyboardInterrupt, at whatever point it comes.

Python raises KeyboardInterrupt between two instructions of the main thread. It may be lost there: in a callback from
C++ code that accepts any exception, or in a destructor, whose exceptions Python drops. Or it may leave something
behind: between creating a folder and storing its name, or in the middle of removing it. While a function decorated with
`interruptible` runs, a handler around the caller's own
- remembers what the caller's handler raised, and raises it at the end of the function if it was lost,
- waits while files and processes are being created or removed,
- raises exceptions again that Python dropped.
"""

from __future__ import annotations

import _thread
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Handler = Callable[[int, FrameType | None], Any]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_SECONDS = 0.01
_uninterrupted: set[CodeType] = set()
_active: _Guard | None = None


def uninterrupted(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a short function that creates or removes something: interrupts are raised after it returns."""
    _uninterrupted.add(function.__code__)
    return function


def interruptible(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function of the public API: a signal that arrives while it runs ends it with the exception from the
    caller's handler (KeyboardInterrupt, unless the caller has set another handler), even if that exception was lost on
    its way."""

    @functools.wraps(function)
    def guarded(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _Guard():
            return function(*args, **kwargs)

    return guarded


def raise_if_interrupted() -> None:
    """Raise an interrupt that was lost before; called at points that long functions pass often."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.raise_lost(None)


def _end_in_forked_process() -> None:
    """Remove the guard in a forked process, which has its own work, below functions that hold back interrupts here."""
    if _active is not None:
        _active.end()


os.register_at_fork(after_in_child=_end_in_forked_process)


class _Guard:
    """Active in the main thread while the outermost decorated function runs."""

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._unraisable = sys.unraisablehook
        self._raised: BaseException | None = None
        self._number = signal.SIGINT
        self._dropped = False
        self._waiting: int | None = None

    @uninterrupted
    def __enter__(self) -> None:
        global _active
        if _active is not None or threading.current_thread() is not threading.main_thread():
            return
        _add_standard_library()
        for number in reversed(_SIGNALS):
            handler = signal.getsignal(number)
            if callable(handler):  # otherwise the signal is ignored or ends the process
                self._handlers[number] = handler
                signal.signal(number, self._handle)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._drop
        _active = self

    @uninterrupted
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _active is self:
            self.end()
            number, self._waiting = self._waiting, None
            if number is not None and not self._dropped:
                self._handlers[number](number, None)
            self.raise_lost(error)
        elif _active is not None and threading.current_thread() is threading.main_thread():
            _active.raise_lost(error)

    def end(self) -> None:
        """Restore the caller's handlers, signal handlers last."""
        global _active
        _active = None
        if sys.unraisablehook == self._drop:
            sys.unraisablehook = self._unraisable
        for each in _SIGNALS:
            if signal.getsignal(each) == self._handle:
                signal.signal(each, self._handlers[each])

    def raise_lost(self, error: BaseException | None) -> None:
        """Raise the exception from a handler, unless it is `error`, which is already being raised."""
        if self._raised is not None and not isinstance(error, type(self._raised)):
            raise self._raised from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._waiting = None
        if _holds_uninterrupted(frame):
            self._send_again(number)
        elif self._dropped and self._raised is not None:
            self._dropped = False
            raise self._raised
        else:
            try:
                self._handlers[number](number, frame)
            except BaseException as error:
                self._raised, self._number = error, signal.Signals(number)
                raise

    def _drop(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Called when Python drops an exception, for example in a destructor."""
        if self._raised is None or unraisable.exc_value is not self._raised:
            self._unraisable(unraisable)
        else:
            self._dropped = True
            self._send_again(self._number)

    def _send_again(self, number: int) -> None:
        """Send the signal again a little later, so that the current code may finish; to the main thread, whose system
        calls the signal interrupts."""
        self._waiting = number
        # Not `threading.Thread`: the interrupted code may hold its locks.
        _thread.start_new_thread(self._sent_again, (number,))

    def _sent_again(self, number: int) -> None:
        time.sleep(_AGAIN_SECONDS)
        main = threading.main_thread().ident
        if self._waiting == number and main is not None:
            signal.pthread_kill(main, number)


def _holds_uninterrupted(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _uninterrupted:
            return True
        frame = frame.f_back
    return False


@functools.cache
def _add_standard_library() -> None:
    """Add the short functions in Python's standard library that create or remove files and processes."""
    import multiprocessing.process
    import shutil
    import subprocess
    import tempfile

    functions: tuple[Callable[..., Any], ...] = (
        tempfile.mkdtemp,
        tempfile.mkstemp,
        tempfile.TemporaryDirectory.__init__,
        tempfile.TemporaryDirectory.cleanup,
        shutil.rmtree,
        subprocess.Popen.__init__,
        multiprocessing.process.BaseProcess.start,
    )
    _uninterrupted.update(each.__code__ for each in functions)
