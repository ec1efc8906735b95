"""`compress`: techniques one after another, as a recipe says, with size, time and accuracy after each.

compress:
  - prune: {pattern: channels, amount: 0.5}
  - distill: {epochs: 10}
  - quantize
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import targets
from compiler.compression.job import Job, Samples, import_options, start
from compiler.compression.model import CompressedModel
from compiler.compression.quantization.accuracy import Evaluate
from compiler.compression.quantization.report import QuantizationReport
from compiler.compression.recipe_file import read_recipe
from compiler.compression.recipe_report import RecipeReport, Row
from compiler.compression.recipe_settings import check_names, check_values, checked_settings
from compiler.compression.techniques.registry import get_technique
from compiler.driver.compile import find_target
from compiler.errors import NothingGainedError, OptionError, TensorwrightError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import Constants, Shapes
from compiler.support.progress_bar import automatic, shows_progress

Step = tuple[str, dict[str, Any]]
_KEY = "compress"


@dataclass(frozen=True, kw_only=True)
class RecipeResult(ImportedModel):
    """A model at the end of a recipe, to be given to `tensorwright.compile`.

    Attributes:
        name: of the model it was made from.
        report: a row a step, and the report of each.
    """

    name: str
    report: RecipeReport

    def __repr__(self) -> str:
        return f"<RecipeResult {self.name!r}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@shows_progress
def compress(
    source: object,
    recipe: str | Path | Sequence[Any] | Mapping[str, Any],
    *,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **extra: Mapping[str, Any],
) -> RecipeResult:
    """Run the steps of a recipe.

    Args:
        source, calibration, evaluate, target, shapes, constants, example_inputs, dynamic_shapes, threads, progress: as
            `tensorwright.prune` takes them; every step gets them.
        recipe: a path to a YAML file; the text "prune -> distill -> quantize"; or a list of names and
            {name: settings}, also as {"compress": list}.
        max_drop: how much of the score the whole recipe may lose in the end; the limit of a step that sets none.
        extra: settings for the steps of that name that no YAML can hold (`-` written as `_`):
            `distill={"teacher": net, "batches": batches}`, `prune={"finetune": train}`.

    Raises:
        AccuracyError: a step, or all together, lose more than they may.
        NothingGainedError: no step finds anything to make smaller or faster; single ones that do not are skipped.
        OptionError: the recipe is at fault.
        UserError: of the steps; `reached` of an error is a `RecipeResult` of the steps before, None at the first.
    """
    steps = parse_recipe(recipe)
    options = import_options(shapes, constants, example_inputs, dynamic_shapes)
    samples = None if calibration is None else list(calibration)
    chosen = find_target(target, threads)
    given = {"target": chosen, "calibration": samples, "evaluate": evaluate, "max_drop": max_drop}
    steps = _completed(steps, extra, given)
    job = start(
        source,
        target=chosen,
        threads=threads,
        calibration=samples,
        evaluate=evaluate,
        max_drop=max_drop,
        progress=progress,
        options=options,
    )
    common = {"target": job.target, "threads": threads, "progress": progress, "evaluate": job.evaluate}
    rows, current = [Row("as it came", job.before, 0.0)], source
    reports: list[Any] = []
    skipped: list[tuple[str, str]] = []
    for index, (name, settings) in enumerate(steps):
        job.report(f"step {index + 1} of {len(steps)}: {name}")
        imports = {} if isinstance(current, ImportedModel) else _accepted(name, options)
        calls = {**common, "calibration": samples, "max_drop": max_drop, **imports, **settings}
        try:
            smaller = get_technique(name).run(current, **calls)
            _require_gain(smaller)
        except NothingGainedError as error:
            skipped.append((name, error.message))
            job.report(f"skipped {name}: {error.message}")
            continue
        except TensorwrightError as error:
            error.message = f"{_where(index, steps)}: {error.message}"
            error.reached = (
                _result(job, current, rows, reports, skipped) if isinstance(current, ImportedModel) else None
            )
            raise
        current = smaller
        after = current.report.after if isinstance(current, CompressedModel) else job.measure(current)
        rows.append(Row(name, after, job.drop(after)))
        reports.append(current.report)
    if not isinstance(current, ImportedModel) or not reports:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in skipped)
        raise NothingGainedError(f"no step of the recipe makes the model smaller or faster:{reasons}")
    result = _result(job, current, rows, reports, skipped)
    try:
        job.require(rows[-1].measure, "the steps together lose more: give each a smaller max_drop, or leave one out")
    except TensorwrightError as error:
        error.reached = result
        raise
    return result


def _accepted(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Distillation trains a torch module, which has no shapes and no constants."""
    return {key: value for key, value in options.items() if name != "distill" or key not in ("shapes", "constants")}


def _require_gain(model: Any) -> None:
    """Raises NothingGainedError for a quantized model all of whose layers stayed in float."""
    report = getattr(model, "report", None)
    if isinstance(report, QuantizationReport) and not any(layer.integer for layer in report.layers):
        raise NothingGainedError(report.summary)


def _result(
    job: Job, model: ImportedModel, rows: list[Row], reports: list[Any], skipped: list[tuple[str, str]]
) -> RecipeResult:
    fields = {name: getattr(model, name) for name in ImportedModel.__dataclass_fields__}
    report = RecipeReport(job.target.name, job.max_drop, tuple(rows), tuple(reports), tuple(skipped))
    return RecipeResult(**fields, name=job.name, report=report)


def _where(index: int, steps: Sequence[Step]) -> str:
    return f"step {index + 1} of {len(steps)}, {steps[index][0]}"


def _completed(steps: Sequence[Step], extra: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> list[Step]:
    """The steps with their settings of both sorts. Raises OptionError for the first that cannot be done."""
    more = _checked_extra(extra, steps)
    whole = [(name, {**settings, **more.get(name, {})}) for name, settings in steps]
    for index, (name, settings) in enumerate(whole):
        technique = get_technique(name)
        try:
            check_values(technique.run, technique.check, {**given, **settings})
        except OptionError as error:
            error.message = f"{_where(index, whole)}: {error.message}"
            raise
    return whole


def _checked_extra(extra: Mapping[str, Mapping[str, Any]], steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """By the names of the steps; numbers and texts as the types that the technique declares."""
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


def _step(entry: Any) -> Step:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, settings = next(iter(entry.items()))
        if settings is None or isinstance(settings, Mapping):
            return str(name), dict(settings or {})
    raise OptionError(f"{entry!r} is no step of a recipe", "a step is a name, or {name: {setting: value}}")


__all__ = ["RecipeResult", "compress", "parse_recipe"]
