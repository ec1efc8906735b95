"""Ctrl-C ends a command soon, whatever is running.

Python acts on a signal only between its own instructions; the engine can be in machine code for seconds. A thread
that the signal wakes waits a moment for the command to end in order, and then ends the process. Files are written
under another name and renamed, so a command that ends early leaves no partial output.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

_PATIENCE_SECONDS = 2.0
_EXIT_CODE = 130


class Interrupts:
    """While active, Ctrl-C raises KeyboardInterrupt once, is remembered in `received`, and is enforced."""

    def __init__(self, patience: float = _PATIENCE_SECONDS) -> None:
        self.received = False
        self._patience = patience
        self._ended = threading.Event()
        self._active = threading.current_thread() is threading.main_thread()
        self._reader, self._writer = -1, -1
        self._previous: object = None
        self._previous_fd = -1

    def __enter__(self) -> Interrupts:
        if self._active:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._enforce, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._active:
            signal.set_wakeup_fd(self._previous_fd)
            signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]
            os.write(self._writer, b"\0")  # lets the thread end
            self._thread.join()
            os.close(self._writer)
            os.close(self._reader)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt

    def _enforce(self) -> None:
        number = os.read(self._reader, 1)
        while not self._ended.is_set() and number[0] != signal.SIGINT:
            number = os.read(self._reader, 1)
        if not self._ended.wait(self._patience):
            os.write(2, b"\nerror: interrupted\n")
            os._exit(_EXIT_CODE)
