"""Ctrl-C and SIGTERM end a command soon, whatever is running, and leave no process and no file.

Python acts on a signal only between its own instructions; TVM can be in machine code for seconds. A thread that the
signal wakes waits a moment for the command to end in order, and then ends the process. Results are written under
another name and renamed; temporary files lie in a folder of the command's own, which goes with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from types import FrameType, TracebackType

_PATIENCE_SECONDS = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EXIT_BASE = 128  # a shell's exit code of a program that a signal ended, less its number


class Interrupts:
    """While active, SIGINT and SIGTERM raise KeyboardInterrupt once and are enforced.

    Attributes:
        received: the signal, None as long as there was none.
    """

    def __init__(self, patience: float = _PATIENCE_SECONDS) -> None:
        self.received: signal.Signals | None = None
        self._patience = patience
        self._ended = threading.Event()
        self._active = threading.current_thread() is threading.main_thread()
        self._reader, self._writer = -1, -1
        self._previous: list[object] = []
        self._previous_fd = -1
        self._folder = TemporaryFiles()

    @property
    def exit_code(self) -> int:
        """Of a command that was interrupted."""
        return _EXIT_BASE + (self.received or signal.SIGINT)

    @property
    def word(self) -> str:
        """The message about the interruption."""
        return "terminated" if self.received == signal.SIGTERM else "interrupted"

    def __enter__(self) -> Interrupts:
        if self._active:
            self._folder.make()
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous = [signal.signal(each, self._handle) for each in _SIGNALS]
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
            for each, previous in zip(_SIGNALS, self._previous, strict=True):
                signal.signal(each, previous)  # type: ignore[arg-type]
            os.write(self._writer, b"\0")  # lets the thread end
            self._thread.join()
            os.close(self._writer)
            os.close(self._reader)
            self._folder.remove()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:  # another one must not stop what cleans up after the first
            self.received = signal.Signals(number)
            raise KeyboardInterrupt

    def _enforce(self) -> None:
        number = os.read(self._reader, 1)
        while not self._ended.is_set() and number[0] not in _SIGNALS:
            number = os.read(self._reader, 1)
        if not self._ended.wait(self._patience):
            self.received = signal.Signals(number[0])
            os.write(2, f"\nerror: {self.word}\n".encode())
            _end_children()
            _remove_unfinished()
            self._folder.remove()
            os._exit(self.exit_code)


class TemporaryFiles:
    """A folder for all temporary files of this process and of those that it starts."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._before: tuple[str | None, str | None] = (None, None)

    def make(self) -> None:
        """Have `tempfile`, and programs that heed TMPDIR, use the folder; where none can be made, nothing changes."""
        with contextlib.suppress(OSError):
            self._folder = tempfile.mkdtemp(prefix="tensorwright-")
        if self._folder is not None:
            self._before = tempfile.tempdir, os.environ.get("TMPDIR")
            tempfile.tempdir = os.environ["TMPDIR"] = self._folder

    def remove(self) -> None:
        """Remove it and its contents."""
        if self._folder is None:
            return
        tempfile.tempdir, variable = self._before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None


def _end_children() -> None:
    """Kill all processes that this one started, and those that they started."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _remove_unfinished() -> None:
    storage = sys.modules.get("compiler.artifact.storage")
    if storage is not None:
        storage.remove_unfinished()
