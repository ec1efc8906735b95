"""`compress`: runs techniques in the order of a recipe, and reports size, time and accuracy after each.

compress:
  - prune: {pattern: channels, amount: 0.5}
  - distill: {epochs: 10}
  - quantize

Reads a recipe from a YAML file safely.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

import targets
from compiler.compression.distillation import DistillationOptions, distill
from compiler.compression.job import JobOptions, Samples, start
from compiler.compression.low_rank import FactorizationOptions, factorize
from compiler.compression.model import CompressedModel, ReportedModel
from compiler.compression.pruning import prune
from compiler.compression.pruning.settings import PruningOptions
from compiler.compression.quantization import quantize
from compiler.compression.quantization.report import QuantizationReport
from compiler.compression.quantization.settings import QuantizationOptions
from compiler.compression.report import Measure, save_report
from compiler.compression.weight_sharing import check_bits, share_weights
from compiler.driver.compile import find_target
from compiler.errors import NothingGainedError, OptionError, StorageError, TensorwrightError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.registry import did_you_mean
from compiler.reports.charts import Column, LineChart, Series, Table
from compiler.reports.formatting import format_bytes, format_percent, format_seconds
from compiler.reports.page import Fact, Page, Section, render
from compiler.support.accuracy import Evaluate, check_max_drop
from compiler.support.interrupts import interruptible
from compiler.support.notebook import table_html
from compiler.support.options import options_of, split_imports, takes_imports
from compiler.support.progress_bar import automatic, shows_progress


@dataclass(frozen=True)
class Row:
    """The model after a step; `drop` is relative to the original model, None if accuracy was not measured."""

    step: str
    measure: Measure
    drop: float | None


@dataclass(frozen=True)
class RecipeReport:
    """Report of a recipe.

    Attributes:
        rows: the original model, and the model after each step.
        reports: report of each step's technique.
        skipped: steps that found nothing to make smaller or faster, with reasons; the recipe continued without them.
    """

    target: str
    max_drop: float
    rows: tuple[Row, ...]
    reports: tuple[Any, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def pareto(self) -> list[Row]:
        """The rows that no other row beats in both time and score."""
        return [row for row in self.rows if not any(_beats(other.measure, row.measure) for other in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "target": self.target,
            "max_drop": self.max_drop,
            "rows": [asdict(row) for row in self.rows],
            "reports": [report.to_dict() for report in self.reports],
            "skipped": [{"step": step, "reason": reason} for step, reason in self.skipped],
        }

    def save(self, path: str | Path) -> None:
        """Write a page (.html) or the numbers (.json). Raises OptionError or StorageError."""
        save_report(path, lambda: recipe_page(self), self.to_dict)

    def __repr__(self) -> str:
        steps = " -> ".join(row.step for row in self.rows[1:])
        first, last = self.rows[0].measure, self.rows[-1].measure
        return (
            f"<RecipeReport {steps}: {format_bytes(first.bytes)} and {format_seconds(first.seconds)} per run before, "
            f"{format_bytes(last.bytes)} and {format_seconds(last.seconds)} after>"
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                row.step,
                "-" if row.measure.score is None else row.measure.score,
                "-" if row.drop is None else format_percent(row.drop),
                format_bytes(row.measure.bytes),
                format_seconds(row.measure.seconds),
            )
            for row in self.rows
        ]
        skipped = "".join(f". Skipped {step}: {reason}" for step, reason in self.skipped)
        return table_html(
            f"Recipe for {self.target}{skipped}", ("step", "score", "drop", "parameters", "time per run"), rows
        )

    def __str__(self) -> str:
        lines = [f"{'step':<16}{'score':>12}{'drop':>10}{'parameters':>14}{'ms per run':>12}"]
        for row in self.rows:
            score = "-" if row.measure.score is None else f"{row.measure.score:.6g}"
            drop = "-" if row.drop is None else f"{row.drop:.3%}"
            size, time = f"{row.measure.bytes / 1e6:.3f} MB", f"{row.measure.seconds * 1e3:.3f}"
            lines.append(f"{row.step:<16}{score:>12}{drop:>10}{size:>14}{time:>12}")
        return "\n".join([*lines, *(f"skipped {step}: {reason}" for step, reason in self.skipped)])


def _beats(left: Measure, right: Measure) -> bool:
    scores = (left.score or 0.0, right.score or 0.0)
    no_worse = left.seconds <= right.seconds and scores[0] >= scores[1]
    return no_worse and (left.seconds < right.seconds or scores[0] > scores[1])


def recipe_page(report: RecipeReport) -> str:
    """The page as HTML text."""
    first, last = report.rows[0].measure, report.rows[-1].measure
    facts = [
        Fact("time per run", format_seconds(last.seconds), f"before {format_seconds(first.seconds)}"),
        Fact("parameters", format_bytes(last.bytes), f"before {format_bytes(first.bytes)}"),
    ]
    if last.score is not None and report.rows[-1].drop is not None:
        facts.append(Fact("score", f"{last.score:.6g}", f"before {first.score:.6g}"))
        facts.append(Fact("drop", format_percent(report.rows[-1].drop), f"limit {format_percent(report.max_drop)}"))
    sections = [Section("After each step", _table(report))]
    if last.score is not None:
        note = "Up and to the left is better; no other step beats those of the front in both."
        sections.insert(0, Section("Time and score", _pareto(report), note))
    subtitle = "; then ".join(row.step for row in report.rows[1:])
    return render(Page(f"Compression for {report.target}", subtitle, facts, sections, ("all", "best")))


def _pareto(report: RecipeReport) -> LineChart:
    def point(row: Row) -> tuple[float, float]:
        return row.measure.seconds * 1e3, row.measure.score or 0.0

    rows = sorted(report.rows, key=point)
    best = sorted(point(row) for row in report.pareto())
    return LineChart(
        [Series("every step", [point(row) for row in rows]), Series("Pareto front", best, line=True)],
        x_label="milliseconds per run",
        y_label="score",
        points=True,
        y_from_zero=False,
        labels=[row.step for row in rows],
    )


def _table(report: RecipeReport) -> Table:
    columns = [
        Column("step", "step"),
        Column("score", "score", number=True),
        Column("drop", "drop %", number=True),
        Column("bytes", "parameters", "B", number=True),
        Column("seconds", "time per run", "s", number=True),
        Column("best", "on the front"),
    ]
    front = report.pareto()
    rows = [
        {
            "step": row.step,
            "score": row.measure.score,
            "drop": None if row.drop is None else round(row.drop * 100, 3),
            "bytes": row.measure.bytes,
            "seconds": row.measure.seconds,
            "best": "yes" if row in front else "",
        }
        for row in report.rows
    ]
    return Table(columns, rows)


Step = tuple[str, dict[str, Any]]
_KEY = "compress"


@dataclass(frozen=True, kw_only=True, repr=False)
class RecipeResult(ReportedModel):
    """The model at the end of a recipe, for `tensorwright.compile`; `report` has a row per step."""

    report: RecipeReport


@interruptible
@shows_progress
@takes_imports
def compress(
    source: object,
    recipe: str | Path | Sequence[object] | Mapping[str, object],
    *,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **extra: Any,
) -> RecipeResult:
    """Run the steps of a recipe.

    Args:
        source, calibration, evaluate, target, threads, progress, and the import options (shapes, constants, state,
            capacity, ...): as in `tensorwright.prune`; they apply to every step.
        recipe: a path to a YAML file; the text "prune -> distill -> quantize"; or a list of names and
            {name: settings}, also as {"compress": list}.
        max_drop: the fraction of the score that the whole recipe may lose; also the limit of steps without their own.
        extra: settings, by step name (`-` written as `_`), that YAML cannot express:
            `distill={"teacher": net, "batches": batches}`, `prune={"finetune": train}`.

    Raises:
        AccuracyError: a step, or all together, lose more than the limit.
        NothingGainedError: no step finds anything to make smaller or faster; single steps that do not are skipped.
        OptionError: the recipe is invalid.
        UserError: a step failed; the error's `reached` is a `RecipeResult` of the steps before, None at the first.
    """
    samples = None if calibration is None else list(calibration)
    common = JobOptions(
        target=find_target(target, threads),
        threads=threads,
        calibration=samples,
        evaluate=evaluate,
        max_drop=max_drop,
        progress=progress,
    )
    imports, extra = split_imports(extra)
    steps = _completed(parse_recipe(recipe), extra, vars(common))
    return _Run(source, steps, common, ImportOptions.of(imports)).result()


class _Run:
    """Runs the steps in order."""

    def __init__(self, source: object, steps: list[Step], common: JobOptions, imports: ImportOptions) -> None:
        self.steps = steps
        self.job = start(source, common, imports)
        self._common = {**vars(common), "evaluate": self.job.evaluate}
        self._current = source
        self.rows = [Row("original", self.job.before, 0.0)]
        self.reports: list[Any] = []
        self.skipped: list[tuple[str, str]] = []

    def result(self) -> RecipeResult:
        """Run all steps. Raises as `compress` does."""
        for index, (name, settings) in enumerate(self.steps):
            self.job.report(f"step {index + 1} of {len(self.steps)}: {name}")
            try:
                self._step(name, settings)
            except NothingGainedError as error:
                self.skipped.append((name, error.message))
                self.job.report(f"skipped {name}: {error.message}")
            except TensorwrightError as error:
                error.message = f"{_where(index, self.steps)}: {error.message}"
                error.reached = self.reached()
                raise
        result = self.reached()
        if result is None or not self.reports:
            reasons = "".join(f"\n  {name}: {reason}" for name, reason in self.skipped)
            raise NothingGainedError(f"no step of the recipe makes the model smaller or faster:{reasons}")
        try:
            advice = "the steps together lose more: give each a smaller max_drop, or leave one out"
            self.job.require(self.rows[-1].measure, advice)
        except TensorwrightError as error:
            error.reached = result
            raise
        return result

    def _step(self, name: str, settings: Mapping[str, object]) -> None:
        imports = {} if isinstance(self._current, ImportedModel) else self._accepted(name)
        smaller = get_technique(name).run(self._current, **{**self._common, **imports, **settings})
        _require_gain(smaller)
        self._current = smaller
        after = smaller.report.after if isinstance(smaller, CompressedModel) else self.job.measure(smaller)
        self.rows.append(Row(name, after, self.job.drop(after)))
        self.reports.append(smaller.report)

    def reached(self) -> RecipeResult | None:
        """The model after the steps so far; None before the first."""
        model = self._current
        if not isinstance(model, ImportedModel):
            return None
        fields = {name: getattr(model, name) for name in ImportedModel.__dataclass_fields__}
        job = self.job
        report = RecipeReport(job.target.name, job.max_drop, tuple(self.rows), tuple(self.reports), tuple(self.skipped))
        return job.finished(RecipeResult(**fields, name=job.name, report=report))

    def _accepted(self, name: str) -> dict[str, Any]:
        """Import options that a step accepts; not every technique accepts all of them."""
        taken = inspect.signature(get_technique(name).run).parameters
        return {key: value for key, value in self.job.imports.given().items() if key in taken}


def _require_gain(model: object) -> None:
    """Raise NothingGainedError for a quantized model whose layers all stayed in float."""
    report = getattr(model, "report", None)
    if isinstance(report, QuantizationReport) and not any(layer.integer for layer in report.layers):
        raise NothingGainedError(report.summary)


def _where(index: int, steps: Sequence[Step]) -> str:
    return f"step {index + 1} of {len(steps)}, {steps[index][0]}"


def _completed(
    steps: Sequence[Step], extra: Mapping[str, Mapping[str, object]], common: Mapping[str, object]
) -> list[Step]:
    """The steps with both kinds of settings. Raises OptionError for the first invalid one."""
    more = _checked_extra(extra, steps)
    completed = [(name, {**settings, **more.get(name, {})}) for name, settings in steps]
    for index, (name, settings) in enumerate(completed):
        technique = get_technique(name)
        try:
            whole_call = arguments(technique.run, {**common, **settings})
            check_max_drop(whole_call["max_drop"])
            technique.check(whole_call)
        except OptionError as error:
            error.message = f"{_where(index, completed)}: {error.message}"
            raise
    return completed


def _checked_extra(extra: Mapping[str, Mapping[str, object]], steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Settings by step name, with numbers and texts converted to the types that the technique declares."""
    result = {}
    names = {name.replace("-", "_"): name for name, _ in steps}
    for name, settings in extra.items():
        if name not in names:
            raise OptionError(
                f"{name}= is neither an option nor a step of the recipe", f"its steps: {', '.join(names)}"
            )
        step, function = names[name], get_technique(names[name]).run
        check_names(step, function, settings)
        plain = {key: value for key, value in settings.items() if isinstance(value, str | int | float)}
        result[step] = {**settings, **checked_settings(step, function, plain)}
    return result


def parse_recipe(recipe: str | Path | Sequence[Any] | Mapping[str, Any]) -> list[Step]:
    """(name, settings) of each step. Raises OptionError or StorageError."""
    if isinstance(recipe, Path) or (isinstance(recipe, str) and recipe.endswith((".yaml", ".yml"))):
        recipe = read_recipe(Path(recipe))
    if isinstance(recipe, Mapping):
        if set(recipe) != {_KEY}:
            raise OptionError(f"a recipe has the one key {_KEY!r}, this one {sorted(map(str, recipe))}")
        recipe = recipe[_KEY]
    if isinstance(recipe, str):
        recipe = [part.strip() for part in recipe.split("->")]
    if not isinstance(recipe, Sequence) or not recipe:
        raise OptionError("a recipe is a list of steps", "compress: [prune: {amount: 0.5}, quantize]")
    steps = [_step(each) for each in recipe]
    return [(name, checked_settings(name, get_technique(name).run, settings)) for name, settings in steps]


def _step(entry: object) -> Step:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, settings = next(iter(entry.items()))
        if settings is None or isinstance(settings, Mapping):
            return str(name), dict(settings or {})
    raise OptionError(f"{entry!r} is not a step of a recipe", "a step is a name, or {name: {setting: value}}")


__all__ = ["RecipeResult", "compress", "parse_recipe"]


Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Technique:
    """A step of a recipe.

    Attributes:
        run: given a model and keyword arguments, returns a compressed model with a report.
        check: raises OptionError for arguments of `run` (all of them, by name; None for missing ones without a default)
            that are invalid for any model.
    """

    run: Callable[..., Any]
    check: Callable[[Settings], None]


def _check_prune(settings: Settings) -> None:
    samples, evaluate = settings["calibration"], settings["evaluate"]
    options_of(PruningOptions, settings).check(has_samples=samples is not None, has_measure=evaluate is not None)


def _check_quantize(settings: Settings) -> None:
    options_of(QuantizationOptions, settings).check(settings["target"], settings["calibration"] is not None)


TECHNIQUES = {
    "distill": Technique(distill, lambda settings: options_of(DistillationOptions, settings).check()),
    "factorize": Technique(factorize, lambda settings: options_of(FactorizationOptions, settings).check()),
    "prune": Technique(prune, _check_prune),
    "quantize": Technique(quantize, _check_quantize),
    "share-weights": Technique(share_weights, lambda settings: check_bits(settings["bits"])),
}


def get_technique(name: str) -> Technique:
    """The technique with that name. Raises OptionError that suggests similar names."""
    if name not in TECHNIQUES:
        raise OptionError(f"no technique is named {name!r}", did_you_mean(name, TECHNIQUES))
    return TECHNIQUES[name]


_LONGEST = 1 << 16  # characters


def read_recipe(path: Path) -> Any:
    """Contents of the file, as plain Python types.

    Raises:
        StorageError: it cannot be read.
        OptionError: it is not YAML, has aliases, repeats a key, or is too large.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _LONGEST:
            raise OptionError(f"{path} has {len(text)} characters", f"a recipe has at most {_LONGEST}")
        # Aliases can expand to more data than fits in memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise OptionError(f"{path} refers to parts of itself (*name)", "write the settings of each step out")
        for name, first, second in _repeated_keys(yaml.compose(text, yaml.SafeLoader)):
            raise OptionError(
                f"{path} has {name!r} in line {first} and again in line {second}",
                "keep one: a repeated step needs two entries in the list",
            )
        return yaml.safe_load(text)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise OptionError(f"{path} is nested too deeply", "compress: [prune: {amount: 0.5}, quantize]") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or a number with thousands of digits
        raise OptionError(f"{path} cannot be read as YAML: {error}") from error


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """(key, line, line of its repetition) of mappings; YAML readers silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in lines:
                    yield key.value, lines[key.tag, key.value], line
                lines[key.tag, key.value] = line
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _repeated_keys(each)


# The settings of the steps of a recipe, checked before anything runs.

# Arguments that `compress` passes on itself, or that are not data.
_GIVEN = ("source", "student", "calibration", "evaluate", "target", "threads", "progress")


def checked_settings(step: str, function: Callable[..., Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """Settings from a file, converted to the types that the technique declares.

    Raises OptionError for settings of other types, and for unknown ones.
    """
    check_names(step, function, settings)
    hints = get_type_hints(function)
    return {name: _converted(step, name, hints.get(name, Any), value) for name, value in settings.items()}


def arguments(function: Callable[..., Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """All arguments of a technique: `settings`, its defaults, and None for those with neither."""
    defaults: dict[str, Any] = {}
    for name, each in inspect.signature(function).parameters.items():
        defaults[name] = None if each.default is inspect.Parameter.empty else each.default
    return {**defaults, **settings}


def check_names(step: str, function: Callable[..., Any], settings: Mapping[str, object]) -> None:
    """Raise OptionError for a setting that the technique does not have, or that belongs to the whole recipe."""
    known = [name for name in inspect.signature(function).parameters if name not in _GIVEN]
    for name in settings:
        if name in _GIVEN:
            raise OptionError(f"the step {step!r} has {name}=, which is the same for all steps", "give it to compress")
        if name not in known:
            raise OptionError(f"the step {step!r} has no setting {name!r}", did_you_mean(str(name), known))


def _converted(step: str, name: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        problems = "; ".join(each["msg"] for each in error.errors())
        raise OptionError(f"the step {step!r}: {name}={value!r} does not fit: {problems}") from error
