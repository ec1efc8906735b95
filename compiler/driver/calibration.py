"""Running a language model on a text, for GPTQ: what its products multiply."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compiler.artifact.fields import decode
from compiler.artifact.language_model import DESCRIPTION_ASSET, TOKENIZER_ASSET, LanguageModelDescription
from compiler.errors import InputError, InvalidModelError, OptionError, StorageError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm.decoder import OPERAND, TOKENS
from compiler.runtime import Module
from compiler.support.tokenizer_file import library_errors, read_tokenizer

Array = np.ndarray
_TOKENS = 4096  # that are read at most
_CONTEXT = 512
_STEP = 128  # tokens of a run: their operands are all in memory


def calibration_tokens(text: Path, model: ImportedModel) -> Array:
    """The tokens of a text file, int64 (windows, tokens of a window).

    Raises:
        StorageError: the file cannot be read, or is not UTF-8.
        InputError: it has too few tokens.
        InvalidModelError: the model has no tokenizer.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{text} cannot be read as a text in UTF-8: {error}") from error
    stored = model.assets.get(TOKENIZER_ASSET)
    if stored is None:
        raise InvalidModelError("calibration needs the model's tokenizer, and it has none", "leave out the calibration")
    with library_errors(InputError, f"{text} cannot be tokenized"):
        found = read_tokenizer(bytes(stored)).encode(content[: 16 * _TOKENS]).ids[:_TOKENS]
    description = decode(bytes(model.assets[DESCRIPTION_ASSET]), LanguageModelDescription)
    window = min(_CONTEXT, description.context)
    windows = len(found) // window
    if not windows:
        raise InputError(
            f"{text} has {len(found)} tokens, and calibration needs {window} or more", "give a longer text"
        )
    tokens: Array = np.asarray(found[: windows * window], np.int64).reshape(windows, window)
    return tokens


def operand_grams(module: Module, tokens: Array) -> tuple[Array, ...]:
    """Of each operand that a module returns the sum of x xᵀ over its rows x, float32 (depth, depth).

    Raises OptionError where the module has no such operands, its products being of another kind.
    """
    names = [each.name for each in module.outputs if each.name.startswith(f"{OPERAND}_")]
    if not names:
        raise OptionError("the model has no products that calibration could serve", "leave out the calibration")
    grams: dict[str, Array] = {}
    for window in tokens:
        session = module.session(capacity=len(window))
        for start in range(0, len(window), _STEP):
            found = session.run({TOKENS: window[None, start : start + _STEP]})
            for name in names:
                rows = found[name].reshape(-1, found[name].shape[-1])
                product = rows.T @ rows
                grams[name] = grams[name] + product if name in grams else product
    return tuple(grams[name] for name in names)
