"""Every causal language model class of transformers, small and random, compiled and compared with transformers.

Each class runs in its own process. A row says how the model was built ("family" or "captured") and how it ended:
"right", "wrong" (numbers or tokens differ), "refused", "error" (any other exception), "crashed" or "too long", or
"not built" if transformers itself cannot build or run the small model.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import compiler
from compiler.errors import TensorwrightError
from compiler.frontends.llm.families import FAMILIES
from tests.coverage.tiny_configs import CONTEXT, VOCABULARY, tiny_config
from tests.fuzz.forked import ending_of

_PROMPTS, _STEPS = (1, 7, 33), 16
_TOLERANCE = 2e-5  # relative to the largest logit, or a multiple of transformers' own float32 error against float64
_TIMES_ROUNDING = 4.0
_MAX_PARAMETERS = 1 << 24
_LIMIT = 600.0  # seconds per class


def classes() -> list[str]:
    """The model types of AutoModelForCausalLM."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return list(NAMES)


def table(kinds: Sequence[str], path: Path | None) -> int:
    """Print a row for each type, and counts; return 1 if one is wrong or ends in an error.

    Args:
        kinds: model types.
        path: JSON file with a row for each type, written after each one; types that it already has are skipped.
    """
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() else {}
    for kind in kinds:
        if kind not in rows:
            rows[kind] = _row_in_a_process(kind)
            print(f"{rows[kind]['end']} {kind}: {_described(rows[kind])}", flush=True)
        if path:
            path.write_text(json.dumps(rows, indent=1))
    ends = [(row["built"], row["end"]) for row in rows.values()]
    for (built, end), count in sorted(Counter(ends).items()):
        print(f"{count:4} {built}, {end}")
    return int(any(end in ("wrong", "error", "crashed") for _, end in ends))


def _described(row: dict[str, Any]) -> str:
    if "errors" in row:
        pairs = zip(row["errors"], row["same"], strict=True)
        return f"{row['built']}, " + ", ".join(f"{error:.1e} and {same} of {_STEPS} tokens" for error, same in pairs)
    return f"{row['built']}, {row['reason']}"


def _row_in_a_process(kind: str) -> dict[str, Any]:
    ending = ending_of(partial(_row, kind), _LIMIT)  # the imports are shared
    ends = {"died": "crashed", "raised": "error", "too long": "too long"}
    return dict(ending.value) if ending.kind == "returned" else _ended(kind, ends[ending.kind], ending.reason)


def _ended(kind: str, end: str, reason: object) -> dict[str, Any]:
    built = "family" if kind in FAMILIES else "captured"
    return {"built": built, "end": end, "reason": " ".join(str(reason).split())[:400]}


def _row(kind: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            wanted = _reference(kind, Path(folder))
        except Exception as error:
            return _ended(kind, "not built", f"{type(error).__name__}: {error}")
        try:
            module = compiler.compile(folder, progress=None)
            found = [_errors(module, prompt, rows) for prompt, rows, _ in wanted]
        except TensorwrightError as error:
            return _ended(kind, "refused", error)
        except Exception as error:
            return _ended(kind, "error", f"{type(error).__name__}: {error}")
    errors, same = zip(*found, strict=True)
    rounding = max(each for _, _, each in wanted)
    is_right = max(errors) <= max(_TOLERANCE, _TIMES_ROUNDING * rounding) and min(same) == _STEPS
    end = _ended(kind, "right" if is_right else "wrong", "")
    return {**end, "errors": errors, "same": same, "rounding": rounding}


def _errors(module: Any, prompt: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> tuple[float, int]:
    """Largest logit error of each step, relative to the largest logit, and the number of equal tokens."""
    takes_capacity = any("capacity" in each.shape for each in module.inputs)
    session = module.session(capacity=len(prompt) + _STEPS if takes_capacity else None)
    step, worst, same = prompt, 0.0, 0
    for row in rows:
        logits = session.run([step[None]])["logits"][0, -1]
        worst = max(worst, float(abs(logits - row).max() / abs(row).max()))
        same += int(logits.argmax() == row.argmax())
        step = np.array([row.argmax()])
    return worst, same


def _reference(kind: str, folder: Path) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]]:
    """Write a random model, and return prompts with transformers' logits (steps, vocabulary) without a cache, and their
    largest error against the float64 model, relative to the largest logit."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(len(kind))
    config = tiny_config(kind)
    with torch.device("meta"):
        count = sum(each.numel() for each in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if count > _MAX_PARAMETERS:
        raise ValueError(f"{count} parameters")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every part matters, including norms and biases
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("expert_bias", "e_score_correction_bias")):
                buffer.add_(0.3 * torch.randn_like(buffer))
        model.save_pretrained(folder)
        for size in _PROMPTS:
            prompt = np.random.default_rng(size).permutation(np.arange(5, min(VOCABULARY, CONTEXT)))[:size]
            tokens, rows = prompt.tolist(), []
            for _ in range(_STEPS):
                row = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
                rows.append(row.float().numpy())
                tokens.append(int(row.argmax()))
            found.append((prompt, np.stack(rows), tokens[:-1]))
        if not all(np.isfinite(rows).all() for _, rows, _ in found):
            raise ValueError("its logits are not finite")
        model.double()
        return [(prompt, rows, _rounding(model, rows, tokens)) for prompt, rows, tokens in found]


def _rounding(model: Any, rows: np.ndarray[Any, Any], tokens: list[int]) -> float:
    """The error of the logits of the last tokens against a model in float64; 0 for one that only runs in float32."""
    import torch

    model.set_experts_implementation("eager")  # the others multiply no float64
    try:
        with in_float64():
            exact = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -len(rows) :].numpy()
    except RuntimeError:
        return 0.0
    return float((abs(exact - rows).max(1) / abs(exact).max(1)).max())


@contextmanager
def in_float64() -> Iterator[None]:
    """Computes in float64 what models ask for in float32."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wider(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                return args[0].double()
            given = [torch.float64 if each is torch.float32 else each for each in args]
            named = {key: torch.float64 if each is torch.float32 else each for key, each in (kwargs or {}).items()}
            return func(*given, **named)

    torch.set_default_dtype(torch.float64)
    try:
        with Wider():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
