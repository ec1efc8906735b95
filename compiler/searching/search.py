"""`search`: the most accurate net that meets a budget on a target."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm_ffi

import targets
from compiler.compression.job import Job, JobOptions, Samples, import_job
from compiler.compression.quantization.layers import find_layers
from compiler.driver.compile import find_target
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.source import ImportOptions
from compiler.passes.registry import did_you_mean
from compiler.searching.explore import Explorer, Finalists, check_choices
from compiler.searching.finish import Finisher
from compiler.searching.front import Candidate
from compiler.searching.graph import GraphNet, calibrated
from compiler.searching.layer_table import CostModel, LayerTable, accelerator_of
from compiler.searching.measure import kernel_times
from compiler.searching.precision import Precisions
from compiler.searching.result import Original, SearchResult, Spent, make_report
from compiler.searching.settings import SearchOptions, Space, check_budget, parse_space
from compiler.searching.study import Study
from compiler.searching.trained_nets import TrainedNets
from compiler.support.accuracy import Evaluate, check_max_drop, likeness, relative_drop, score
from compiler.support.interrupts import interruptible
from compiler.support.options import Constants, Shapes, options_of
from compiler.support.progress_bar import automatic, shows_progress

if TYPE_CHECKING:
    from compiler.searching.torch_net import TorchNet

_SAMPLES = 64  # samples from the batches, as calibration


@interruptible
@shows_progress
def search(
    source: object,
    budget: Mapping[str, float],
    *,
    space: Space | Mapping[str, Any] | str | Path | None = None,
    train: Callable[[Any], object] | None = None,
    batches: Iterable[Any] | None = None,
    task: Callable[[Any, Any], Any] | None = None,
    epochs: int = 5,
    finish_epochs: int | None = None,
    learning_rate: float = 1e-3,
    recipe: Any = None,
    trials: int = 64,
    sampler: str = "nsga2",
    seed: int = 0,
    storage: str | os.PathLike[str] | None = None,
    finalists: int = 2,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    target: str | targets.Target = "host",
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
) -> SearchResult:
    """Search the sub-nets of a net, and the forms of its `choice` blocks, for the most accurate one within a budget.

    Args:
        source, calibration, evaluate, target, shapes, constants, example_inputs, threads: as in `tensorwright.prune`.
        The
            sizes of all inputs must be known.
        budget: limits by name: "ms" (per run), "mb" (parameters), "peak_mb" (peak of activations); for an accelerator
            also "cycles" and "sram_kb". The first is one axis of the front.
        space: what may be changed: a `Space`, a dictionary of its fields, or a YAML file.
        train: for a `torch.nn.Module`: a function that fine-tunes a final candidate; removed parts stay removed.
        batches: for a `torch.nn.Module`: pairs (inputs, labels), iterated once per epoch. All sub-nets are then trained
            together before the search, with shared weights, and the chosen one is distilled from the original net.
        task: a loss function of outputs and labels; cross-entropy if None.
        epochs, learning_rate: for training the shared weights. The rate is a peak: each training with `batches` raises
            it over its first three tenths, then lowers it to almost zero.
        finish_epochs: epochs of distilling a finalist, with the same rate; None: three times `epochs`. Small nets need
            more than large ones.
        recipe: steps of `tensorwright.compress` between training and quantizing.
        trials: number of candidates to score.
        sampler: proposes candidates between the first and the last phase: optuna's "nsga2" or "tpe".
        storage: a file, created if missing, in which candidates are stored as they are found; a stopped search
        continues
            from it. Kernel times and shared weights are stored next to it.
        finalists: number of candidates to finish; the best of those is chosen. With `batches`, three times as many,
            including the best evenly pruned one, are first trained for a quarter of the time; without, the candidates
            with the best scores and the best evenly pruned one are finished.
        max_drop: the fraction of the original net's score that the chosen net may lose; None: no limit.

    Returns:
        The front, the chosen net, the compiled module, and a report.

    Raises:
        OptionError: an option is invalid, `evaluate` fails, the space has no choice, or no net of it meets the budget.
        AccuracyError: the limit max_drop does not hold.
        MissingDependencyError: optuna is not installed.
        StorageError: `storage` cannot be used.
        UserError: importing, training or compiling failed. The error's `reached` has the candidates so far.
    """
    repeated = list(batches) if isinstance(batches, Iterator) else batches
    options = options_of(SearchOptions, {**locals(), "space": parse_space(space), "batches": repeated})
    options.check()
    if max_drop is not None:
        check_max_drop(max_drop)
    common = JobOptions(target=target, threads=threads, calibration=calibration, evaluate=evaluate, progress=progress)
    imports = ImportOptions(shapes=shapes, constants=constants, example_inputs=example_inputs)
    return _Search(source, options, common, imports, max_drop).result()


class _Search:
    """One search, from the net to the result."""

    def __init__(
        self, source: object, options: SearchOptions, common: JobOptions, imports: ImportOptions, max_drop: float | None
    ) -> None:
        self.options, self.max_drop, self.report = options, max_drop, common.report
        self.target = find_target(common.target, common.threads)
        here = self.target.fits_this_machine() and not self.target.device
        self.job = import_job(source, replace(common, target=self.target if here else "host"), imports)
        _check_sizes(self.job)
        self.torch_module: Any = source if hasattr(source, "named_parameters") else None
        if options.trains and self.torch_module is None:
            raise OptionError("train= and batches= are for a torch.nn.Module", f"this is {type(source).__name__}")
        self._complete_samples()
        self._complete_evaluate()
        self.budget = check_budget(options.budget)
        self.precisions = Precisions(self.target)
        self.net = self._net(imports)
        check_choices(self.net.knobs)
        self._check_kept()
        self.costs = self._cost_model()

    def _complete_samples(self) -> None:
        """Take the calibration from the batches if the caller gave none."""
        if not self.job.samples and self.options.batches is not None and self.torch_module is not None:
            from compiler.searching.supernet import samples_of
            from compiler.searching.torch_net import seeded

            with seeded(self.options.seed):
                self.job.samples = samples_of(self.options.batches, self.job.model.inputs, _SAMPLES)

    def _complete_evaluate(self) -> None:
        if self.job.evaluate is not None:
            return
        if not self.job.samples:
            raise OptionError("there is nothing to score candidates by", "give evaluate=, or calibration=")
        module = self.job.compile(self.job.model)
        self.job.evaluate = likeness(self.job.samples, [dict(module.run(sample)) for sample in self.job.samples])

    def _net(self, imports: ImportOptions) -> TorchNet | GraphNet:
        space = self.options.space
        if self.torch_module is not None:
            from compiler.searching.supernet import inputs_for_statistics
            from compiler.searching.torch_net import RECALIBRATED, TorchNet, copied, seeded

            with seeded(self.options.seed):
                batches = inputs_for_statistics(self.options.batches, self.job, RECALIBRATED)
            return TorchNet(copied(self.torch_module), self.job, imports, space, self.precisions, batches)
        if space.resolution:
            raise OptionError("space= has a resolution, which needs a torch.nn.Module", "leave it out")
        if "int8" in space.precision and self.job.samples:
            self.precisions = calibrated(self.job, self.precisions)
        return GraphNet(self.job, space, self.precisions)

    def _check_kept(self) -> None:
        """Raise OptionError if `keep` has names that the net does not have."""
        names = {layer.name for layer in find_layers(self.job.model.mod, nodes=self.job.model.nodes).layers}
        names |= {knob.name.split(" ", 1)[-1] for knob in self.net.knobs}
        names |= {name for name, _ in self.torch_module.named_modules()} if self.torch_module is not None else set()
        for each in self.options.space.keep:
            if not any(name == each or name.startswith(f"{each}.") for name in names):
                raise OptionError(f"space= keeps {each!r}, which is not a layer", did_you_mean(each, sorted(names)))

    def _cost_model(self) -> CostModel:
        accelerator = accelerator_of(self.target)
        table = None
        if accelerator is None and "ms" in self.budget:
            times = kernel_times(self.target, self.job.threads)
            table = LayerTable(self.target, times, self._beside_storage("layers.json"), self.report)
        return CostModel(self.target, self.budget, table, accelerator)

    def _beside_storage(self, ending: str) -> Path | None:
        storage = self.options.storage
        return None if storage is None else Path(f"{os.fspath(storage)}.{ending}")

    def _identity(self) -> str:
        """Identity of the search, by which a storage is matched."""
        options = self.options
        facts = [
            tvm_ffi.structural_hash(self.job.model.mod),
            [(knob.name, knob.options) for knob in self.net.knobs],
            self.budget,
            self.target.describe(),
            options.seed,
            options.epochs,
            options.learning_rate,
        ]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def result(self) -> SearchResult:
        """Run the search. Raises as `search`."""
        try:
            return self._result()
        finally:
            self.costs.close()

    def _result(self) -> SearchResult:
        self.report("score the original net")
        assert self.job.evaluate is not None
        original = score(self.job.evaluate, self.job.compile(self.job.model).run)
        study = Study(
            self.net.knobs,
            next(iter(self.budget)),
            self._identity(),
            sampler=self.options.sampler,
            seed=self.options.seed,
            storage=self.options.storage,
        )
        explorer = Explorer(self.net, self.costs, self.budget, self.options, study, self.report)
        trained = self._train_shared()
        begun = Spent.so_far()
        try:
            candidates = explorer.run()
        finally:
            self.costs.close()  # the processor time of processes counts only once they have ended
            spent = Spent.so_far().since(begun)
            searched = Spent(*study.add_spent(spent.seconds, spent.cpu_seconds))
        finisher = Finisher(
            self.job,
            self.net,
            self.costs,
            self.options,
            self.torch_module,
            self.max_drop,
            self.report,
            TrainedNets(self._beside_storage("trained")),
        )
        before = Original(original, self.costs.costs([self._as_it_came()])[0])
        chosen, finished = Finalists(explorer, finisher, self._fits_as_a_whole, self.report).best()
        report = make_report(explorer, chosen, finished, before, trained, searched)
        result = SearchResult(
            self.job.name, report, chosen, finished.model, finished.module, finisher, tuple(candidates)
        )
        drop = relative_drop(original, finished.score)
        if self.max_drop is not None and drop > self.max_drop:
            error = AccuracyError(
                f"the limit max_drop={self.max_drop} does not hold: {original:.6g} originally, {finished.score:.6g}"
                " within the budget",
                "allow a larger budget, train longer, or give space= finer options",
            )
            error.reached = result
            raise error
        return result

    def _as_it_came(self) -> Any:
        """The original net's graph, in float unless the target only computes in integers."""
        return self.precisions.applied(self.job.model, {})

    def _train_shared(self) -> float:
        """Train the shared weights of sub-nets, or load an earlier run's; returns the seconds."""
        if self.options.batches is None:
            return 0.0
        from compiler.searching.supernet import shared_weights

        begun = time.perf_counter()
        assert not isinstance(self.net, GraphNet)
        shared_weights(self.net, self.options, self.report)
        return time.perf_counter() - begun

    def _fits_as_a_whole(self, candidate: Candidate) -> bool:
        """True if its whole module is within the budget: the table has an error of some per cent."""
        table = self.costs.table
        if table is None or "ms" not in self.budget:
            return True
        seconds = table.whole(table.lowered(self.net.model(candidate.config)))
        return 1e3 * seconds <= self.budget["ms"]


def _check_sizes(job: Job) -> None:
    for spec in job.model.inputs:
        if symbolic := [size for size in spec.shape if not isinstance(size, int)]:
            raise OptionError(
                f"the input {spec.name!r} has the symbolic size {symbolic[0]!r}, and costs need numbers",
                f"shapes={{{spec.name!r}: (1, ...)}}",
            )


__all__ = ["SearchResult", "search"]
