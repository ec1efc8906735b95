"""Every error a user can meet: one base, one class per cause, and a message that says what to do.

`TensorwrightError` is split in two: `UserError` (the input, the machine or the request is at fault; exit code 2)
and `InternalError` (a defect of Tensorwright or of TVM below it; exit code 70, EX_SOFTWARE of sysexits.h).
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

_ROOT = Path(__file__).resolve().parent.parent
_PUBLIC_NAME = "tensorwright.errors"  # the name under which users import this module, for tracebacks


class TensorwrightError(Exception):
    """Base of all errors.

    Args:
        message: what is wrong and where.
        hint: what the user can do about it, a sentence; shown on a line of its own.

    Attributes:
        reached: the result of the steps before the one that failed, None if there is none.
    """

    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__ == __name__:
            cls.__module__ = _PUBLIC_NAME

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reached: object = None

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


TensorwrightError.__module__ = _PUBLIC_NAME


class UserError(TensorwrightError):
    """The input, the environment or the request is at fault."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """Traceback in IPython and Jupyter: the frames of the user's code, without ours in between."""
        folders = tuple(f"{_ROOT / name}{os.sep}" for name in ("compiler", "schedules", "targets", "tensorwright"))
        frames = [
            frame
            for frame in traceback.extract_tb(self.__traceback__)
            if not frame.filename.startswith(folders) and f"{os.sep}IPython{os.sep}" not in frame.filename
        ]
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
        return "".join([*lines, *traceback.format_exception_only(self)]).splitlines()


class InternalError(TensorwrightError):
    """A defect of Tensorwright or of TVM below it; the message names the phase and what was being done."""

    exit_code = 70


class InvalidModelError(UserError):
    """The model file or object is broken: truncated, inconsistent, cyclic, or it reaches outside its folder."""


@dataclass(frozen=True)
class Refusal:
    """Reason why one node of a model cannot be compiled."""

    operator: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} (node {self.node!r}): {self.reason}"


class UnsupportedModelError(UserError):
    """The model is valid but holds something that cannot be compiled; `refusals` lists each node with its reason."""

    def __init__(self, refusals: Sequence[Refusal], hint: str | None = None) -> None:
        lines = "\n".join(f"  - {refusal}" for refusal in refusals)
        count = "1 node" if len(refusals) == 1 else f"{len(refusals)} nodes"
        super().__init__(f"{count} cannot be compiled:\n{lines}", hint)
        self.refusals = tuple(refusals)


class InputValueRequiredError(UserError):
    """An operand must be known when compiling, but depends on model inputs whose values are not fixed.

    `inputs` names them; `compile(..., constants={name: array})` fixes them.
    """

    def __init__(self, refusal: Refusal, inputs: Sequence[str]) -> None:
        names = ", ".join(repr(name) for name in inputs)
        super().__init__(
            f"{refusal}; its value comes from the model {'input' if len(inputs) == 1 else 'inputs'} {names}",
            f"fix the value when compiling: compile(..., constants={{{inputs[0]!r}: array}})" if inputs else None,
        )
        self.refusal = refusal
        self.inputs = tuple(inputs)


class InputError(UserError):
    """Inputs of a run or a compilation do not fit the model: name, shape, data type or value."""


class OptionError(UserError):
    """An option of the API or the command line has a value that is not allowed."""


class QueueFullError(UserError):
    """More requests wait than may; a later one may be accepted."""


class UnknownTargetError(UserError):
    """No target has that name; the hint suggests near ones."""


class ToolchainError(UserError):
    """A program that is needed (compiler, linker, simulator) is missing or failed; the hint says how to install it."""


class MissingDependencyError(UserError):
    """An optional Python package is needed; the hint names the extra that installs it."""


class ArtifactError(UserError):
    """A module file is damaged, truncated, or not a module at all."""


class IncompatibleArtifactError(ArtifactError):
    """A sound module that this machine or this version cannot run."""


class SignatureError(ArtifactError):
    """A signature is required and is missing, invalid, or made by a key that is not trusted."""


class StorageError(UserError):
    """A file could not be read or written: permissions, a full disk, a missing folder."""


_STORAGE_HINTS = {
    "No space left on device": "free some space, or write to another disk",
    "Read-only file system": "write to a folder that can be written",
    "Permission denied": "check the permissions of the file and its folder",
    "No such file or directory": "check the path",
}


@contextmanager
def storage_errors(path: object, verb: str = "read", what: str = "") -> Iterator[None]:
    """Raise StorageError with a hint where the system cannot read, write or make the file or folder of that path.

    Args:
        verb: "read", "written" or "made".
        what: a description of the file before its path in the message: "the tokenizer ".
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path, or bytes that are not UTF-8
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StorageError(f"{what}{path} cannot be {verb}: {reason}", _STORAGE_HINTS.get(reason)) from error


class DeviceError(UserError):
    """A device does not answer, or refused a module; what was active there still is."""


class ServingError(UserError):
    """A server cannot answer a request now, though the request may be right."""


class OverloadedError(ServingError):
    """More requests came than can be answered in time; the client may try again.

    Attributes:
        retry_after: seconds after which trying again makes sense.
        late: the request's own deadline cannot be met (HTTP 503), rather than that the queue is full (HTTP 429).
    """

    def __init__(self, message: str, hint: str | None = None, *, retry_after: float = 1.0, late: bool = False) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after
        self.late = late


class ServiceUnavailableError(ServingError):
    """A model is not loaded, is being unloaded, or what computes its answers has died and is being started again."""


class ModelNotFoundError(ServingError):
    """A server knows no model, or no version of it, by that name."""


class AccuracyError(UserError):
    """A compressed model loses more accuracy than the caller allows; the message says how much."""


class NothingGainedError(OptionError, AccuracyError):
    """A technique of compression finds nothing in the model that it could make smaller or faster.

    `compress` skips such a step and says so.
    """


class PassError(InternalError):
    """A graph pass failed or produced a module that is not well formed; names the pass."""


class VerificationError(InternalError):
    """A pass changed a number by more than the tolerance; names the first one that did."""


class CompilationError(InternalError):
    """TVM failed to build a module; carries the phase and TVM's own message."""


def type_text(value: object) -> str:
    """The type of a value for a message: "an ndarray", "a class", "None"."""
    if value is None:
        return "None"
    name = "class" if isinstance(value, type) else type(value).__name__
    article = "an" if name.lower().startswith(("a", "e", "i", "o", "nd")) else "a"
    return f"{article} {name}"
