"""Makes a module from a config: fine-tunes and distills its weights, quantizes its layers, verifies and compiles it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.compression.job import Job
from compiler.compression.model import canonical
from compiler.compression.quantization import quantize
from compiler.compression.quantization.calibration import scheme_for
from compiler.compression.quantization.layer_choice import FLOAT, INTEGER
from compiler.compression.quantization.layers import find_layers
from compiler.compression.recipe import compress
from compiler.driver.compile import compile as compile_model
from compiler.errors import NothingGainedError
from compiler.frontends.imported_model import ImportedModel
from compiler.runtime import Module
from compiler.searching.graph import GraphNet
from compiler.searching.knobs import Config
from compiler.searching.layer_table import CostModel, Costs
from compiler.searching.precision import SCHEMES, precisions_in
from compiler.searching.settings import SearchOptions
from compiler.searching.trained_nets import TrainedNets
from compiler.support.accuracy import score

if TYPE_CHECKING:
    from compiler.searching.supernet import SubNetwork
    from compiler.searching.torch_net import TorchNet

_LOST_BY_QUANTIZING = 0.05  # fraction of the score, if the caller sets no limit


@dataclass(frozen=True)
class Finished:
    """A candidate in its deployed form.

    Attributes:
        config: its config from the search.
        model: the compiled model.
        module: the verified module for the target.
        score: score of the model by `evaluate` on this machine.
        costs: costs by the names of the budget.
        steps: descriptions of the steps, in order.
        seconds: duration of training and quantizing.
    """

    config: Config
    model: ImportedModel
    module: Module
    score: float
    costs: Costs
    steps: tuple[str, ...]
    seconds: float


@dataclass
class Finisher:
    """Finishes candidates of one search.

    Args:
        job: job of the original net; `job.evaluate` scores modules that this machine can run.
        teacher: the original net, the teacher of distillation; None for models from other sources than torch.
        kept: weights of candidates that were trained before.
    """

    job: Job
    net: TorchNet | GraphNet
    costs: CostModel
    options: SearchOptions
    teacher: Any
    max_drop: float | None
    report: Callable[[str], None]
    kept: TrainedNets

    def finish(self, config: Config, epochs: int | None = None) -> Finished:
        """Train, quantize, verify and compile a candidate.

        Args:
            epochs: epochs of distillation, without `train`, to compare it with others; None: full training.

        Raises:
            AccuracyError: quantization loses more than allowed.
            VerificationError: the module's results differ from the model's.
            UserError: training or compiling failed.
        """
        begun = time.perf_counter()
        steps: list[str] = []
        model = self._trained(config, epochs, steps)
        if self.options.recipe is not None:
            self.report("recipe")
            model = self._by_recipe(model, steps)
        model = self._quantized(model, precisions_in(config), steps)
        self.report("compile")
        samples = self.job.samples
        known = samples[0] if samples and {spec.name for spec in model.inputs} == set(samples[0]) else None
        module = compile_model(
            model, self.costs.target, threads=self.job.threads, reference_inputs=known, progress=None
        )
        if module.artifact.reference_outputs and self._runs_here(module):
            self.report("verify")
            module.verify()
            steps.append("verify")
        return Finished(
            config,
            model,
            module,
            self.score(model, module),
            self.costs.costs([model])[0],
            tuple(steps),
            time.perf_counter() - begun,
        )

    def trained(self, config: Config) -> ImportedModel:
        """A candidate before quantization, trained like a finalist."""
        return self._trained(config, None, [])

    def score(self, model: ImportedModel, module: Module) -> float:
        """Score of a model: of its module if this machine can run it, otherwise of one compiled for this machine."""
        assert self.job.evaluate is not None
        if not self.costs.target.fits_this_machine() or self.costs.target.device:
            module = compile_model(model, "host", threads=self.job.threads, progress=None)
        return score(self.job.evaluate, module.run)

    def _runs_here(self, module: Module) -> bool:
        return self.costs.target.fits_this_machine() and bool(module.artifact.reference_outputs)

    def _common(self) -> dict[str, Any]:
        return {
            "calibration": self.job.samples or None,
            "evaluate": self.job.evaluate,
            "max_drop": _LOST_BY_QUANTIZING if self.max_drop is None else self.max_drop,
            "target": self.job.target,
            "threads": self.job.threads,
            "progress": None,
        }

    def _trained(self, config: Config, epochs: int | None, steps: list[str]) -> ImportedModel:
        if isinstance(self.net, GraphNet):
            return self.net.floats(config)
        from compiler.searching.supernet import SubNetwork
        from compiler.searching.torch_net import on_threads

        if not self.options.trains:
            return self._canonical(SubNetwork.of(self.net, config))
        with on_threads(self.job.threads):
            work = SubNetwork.of(self.net, config)
            finetunes = self.options.train is not None and epochs is None
            distills = self.options.epochs_of_finalists if epochs is None else epochs
            path = self.kept.path(work.net, config, self.options, finetunes, distills)
            if not self.kept.read_into(work.net, path):
                self._train(work, finetunes, distills)
                self.kept.keep(work.net, path)
        steps += ["finetune"] * finetunes + ["distill"] * (self.options.batches is not None)
        return self._canonical(work)

    def _train(self, work: SubNetwork, finetunes: bool, epochs: int) -> None:
        if finetunes:
            assert self.options.train is not None
            self.report("finetune")
            work.train(self.options.train)
        if self.options.batches is not None:
            self.report("distill")
            work.distill(self.teacher, self.options, epochs, self.report)

    def _canonical(self, work: SubNetwork) -> ImportedModel:
        return canonical(work.compressed(), self.job.target)

    def _by_recipe(self, model: ImportedModel, steps: list[str]) -> ImportedModel:
        """The model after the recipe; unchanged if no step finds anything."""
        try:
            done = compress(model, self.options.recipe, **self._common())
        except NothingGainedError as error:
            self.report(f"the recipe is skipped: {error.message}")
            return model
        steps += [row.step for row in done.report.rows[1:]]
        return done

    def _quantized(self, model: ImportedModel, precisions: Mapping[str, str], steps: list[str]) -> ImportedModel:
        common = self._common()
        if self.costs.target.quantized_everywhere:
            steps.append("quantize all layers to int8")
            return quantize(model, scheme=SCHEMES["int8"], **{**common, "target": self.costs.target})
        names = [layer.name for layer in find_layers(model.mod, nodes=model.nodes).layers]
        for precision in ("int4", "bf16", "int8"):
            chosen = [name for name in names if precisions.get(name) == precision]
            if not chosen:
                continue
            self.report(f"quantize {len(chosen)} layer(s) to {precision}")
            here = [layer.name for layer in find_layers(model.mod, nodes=model.nodes).layers]
            decide = {name: INTEGER if name in chosen else FLOAT for name in here}
            # The target's integer scheme, in a module that this machine can run.
            settings: dict[str, Any] = (
                {"activations": scheme_for(self.costs.target).activations} if precision == "int8" else {}
            )
            quantized = quantize(model, scheme=SCHEMES[precision], decide=decide, **settings, **common)
            steps.append(f"quantize {len(chosen)} layer(s) to {precision}")
            model = replace(ImportedModel(**{name: getattr(quantized, name) for name in vars(model)}))
        return model
