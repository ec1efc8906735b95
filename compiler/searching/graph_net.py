"""A model of any source in a search: each candidate is a graph, and is compiled for this machine to be scored."""

from __future__ import annotations

from compiler.compression.job import Job
from compiler.compression.quantization.session import Session
from compiler.driver.compile import compile as compile_model
from compiler.frontends.imported_model import ImportedModel
from compiler.searching.accelerator import channels_at_once
from compiler.searching.graph import SearchGraph
from compiler.searching.knobs import Config, Knob
from compiler.searching.precision import Precisions
from compiler.searching.settings import Space
from compiler.support.accuracy import score as score_of


class GraphNet:
    """The model and its space.

    Args:
        job: of the model as it came.
    """

    def __init__(self, job: Job, space: Space, precisions: Precisions) -> None:
        self.job, self.precisions = job, precisions
        self.graph = SearchGraph.of(job.model)
        lanes = channels_at_once(precisions.target)
        self.knobs: list[Knob] = [
            *self.graph.knobs(space, lanes),
            *precisions.knobs(job.model, space, space.keep),
        ]

    def model(self, config: Config) -> ImportedModel:
        """A candidate, as it is compiled."""
        return self.precisions.applied(self.graph.realized(config), config)

    def floats(self, config: Config) -> ImportedModel:
        """A candidate before its layers are rounded."""
        return self.graph.realized(config)

    def score(self, config: Config) -> float:
        """What `evaluate` says of the candidate. Raises OptionError where it fails."""
        evaluate = self.job.evaluate
        assert evaluate is not None
        model = self.floats(config) if self.precisions.scheme.integer_only else self.model(config)
        module = compile_model(model, "host", threads=self.job.threads, progress=None)
        return score_of(evaluate, module.run)


def calibrated(job: Job, precisions: Precisions) -> Precisions:
    """The same with the ranges of activations on the calibration."""
    session = Session(job.model, job.samples, precisions.scheme, "mse", (), job.compile, job.report)
    numbers = session.numbers(session.place())
    ranges = {str(site.name): affine for site, affine in numbers.activations.items()}
    return Precisions(precisions.target, ranges)
