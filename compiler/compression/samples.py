"""The caller's samples: inputs as the model will meet them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from compiler.errors import InputError, OptionError, UserError, type_text
from compiler.frontends.imported_model import ImportedModel

Sample = Mapping[str, np.ndarray]
Samples = Iterable[Sample]
_WANTED = "give a sequence of {input name: array}, or something that yields them"


def checked_samples(calibration: Samples, model: ImportedModel) -> list[dict[str, np.ndarray]]:
    """The samples as dictionaries of arrays of all inputs.

    Raises:
        OptionError: there is none, or giving them fails.
        InputError: one lacks an input, has one that the model does not, or holds NaN.
    """
    if isinstance(calibration, Mapping | str | np.ndarray) or not isinstance(calibration, Iterable):
        raise OptionError(f"calibration= is {type_text(calibration)}", _WANTED)
    names = {spec.name for spec in model.inputs}
    try:
        samples = [_checked_sample(sample, f"calibration[{index}]", names) for index, sample in enumerate(calibration)]
    except UserError:
        raise
    except Exception as error:
        raise OptionError(f"calibration= raised {type(error).__name__}: {error}", _WANTED) from error
    if not samples:
        raise OptionError("calibration= holds no samples", "give some inputs as the model will meet them")
    return samples


def _form(names: set[str]) -> str:
    return "{" + ", ".join(f"{name!r}: array" for name in sorted(names)) + "}"


def _checked_sample(sample: Sample, where: str, names: set[str]) -> dict[str, np.ndarray]:
    if not isinstance(sample, Mapping):
        raise OptionError(f"{where} is {type_text(sample)}", f"give a dict by input name: {_form(names)}")
    missing, unknown = sorted(names - set(sample)), sorted(map(str, set(sample) - names))
    if missing or unknown:
        problems = [f"lacks {missing}"] if missing else []
        problems += [f"has {unknown}, which the model does not take"] if unknown else []
        raise InputError(f"{where} {' and '.join(problems)}", f"the model's inputs are {sorted(names)}")
    arrays = {name: np.asarray(value) for name, value in sample.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise InputError(f"{where} holds NaN in {name!r}", "leave out what the model is not meant to meet")
    return arrays
