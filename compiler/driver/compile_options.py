"""The options of a compilation and its target, checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import targets
from compiler.errors import OptionError, ToolchainError, UnknownTargetError, type_text
from compiler.support.processing import Processing
from compiler.support.progress_bar import silent

if TYPE_CHECKING:
    from compiler.driver.sizes import Sizes
    from compiler.passes.registry import PassLike
    from compiler.records.library import RecordSource

Progress = Callable[[str], None]
# Machine features that targets need for lower precisions, and targets that have them.
_NEEDS = {
    "bf16": ("bf16_dot_product", "bfloat16 dot product", "znver4, sapphire-rapids, a100, h100"),
    "float16": ("float16_product", "fast float16 products", "sapphire-rapids, granite-rapids, t4, a100, h100"),
}


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The options of `compile` except those for importing; `compile` documents the fields. `name` is the module's name;
    None for the source's name."""

    name: str | None = None
    sizes: Sizes | None = None
    processing: Processing | None = None
    precision: str | None = None
    sequences: bool = False
    images: bool = False
    cache: str | None = None
    calibration: str | Path | None = None
    adapters: Sequence[str | Path] | Mapping[str, str | Path] = ()
    threads: int | None = None
    passes: Mapping[str, PassLike | None] | None = None
    dump: str | Path | None = None
    verify: bool = False
    reference_inputs: Mapping[str, np.ndarray] | None = None
    records: RecordSource = None
    progress: Progress | None = None

    @property
    def report(self) -> Progress:
        """The function to call with the name of each step."""
        return self.progress if self.progress is not None else silent


def find_target(target: str | targets.Target, cores: int | None = None) -> targets.Target:
    """The target with that name, scheduled for `cores` threads.

    Raises UnknownTargetError with suggestions, and OptionError if the argument is neither a name nor a target.
    """
    if isinstance(target, targets.Target):
        return target
    if not isinstance(target, str):
        raise OptionError(f"{type_text(target)} is not a target", "give a name of `tensorwright targets`, or a Target")
    with translated_target_errors():
        return targets.get(target, cores=cores)


def check_precision(target: targets.Target, precision: str) -> None:
    """Raise OptionError unless a target supports a precision from `PRECISIONS`."""
    if precision in _NEEDS:
        needed, what, having = _NEEDS[precision]
        if not getattr(target.machine, needed):
            hint = f"name a target that has ({having}), or leave precision at float32"
            if precision == "float16":
                faster = ' "bf16" is computed here, and' if target.machine.bf16_dot_product else ""
                hint = (
                    f"targets that have these: {having};{faster} weights are stored in float16 by "
                    f'tensorwright.quantize(model, scheme="float16"), or `tensorwright quantize --scheme float16`'
                )
            raise OptionError(f"target {target.name!r} has no {what}", hint)


@contextmanager
def translated_target_errors() -> Iterator[None]:
    """Translate exceptions of the lower layers to this package's exceptions."""
    try:
        yield
    except targets.UnknownTarget as error:
        raise UnknownTargetError(error.message, error.hint) from error
    except targets.TargetError as error:
        raise ToolchainError(error.message, error.hint) from error


def model_name(source: object) -> str:
    """A name for a source of `compile`: from its file, its graph or its class."""
    if isinstance(source, str | Path):
        return Path(source).stem
    from compiler.frontends.imported_model import ImportedModel

    name = getattr(source if isinstance(source, ImportedModel) else getattr(source, "graph", None), "name", None)
    name = name if isinstance(name, str) and name else type(source).__name__
    return re.sub(r"[^\w.-]+", "_", name)[:200]
