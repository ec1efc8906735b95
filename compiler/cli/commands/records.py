"""`tensorwright records`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.cli import options
from compiler.cli.options import argument, flag, option
from compiler.cli.output import print_json, print_line, print_note, print_table
from compiler.reports.formatting import format_seconds, plural

HELP = """Show, merge and reduce tuning records.

[bold]Typical[/]

  tensorwright records                 the shipped records, and your own

[bold]Examples[/]

  The records in a folder:
    tensorwright records logs

  Merge several files, each trial once; or only the best of each kernel:
    tensorwright records logs other.jsonl --output all.jsonl
    tensorwright records logs --best --output best.jsonl

  Import records from elsewhere into your own:
    tensorwright records best.jsonl --import
"""


def command(
    paths: list[Path] | None = argument("Record files or folders.", "[PATH]...", default=None),
    output: Path | None = option("Write them there.", "FILE", "--output", "-o"),
    best: bool = flag("Keep only the best and the default of each kernel.", "--best"),
    take_over: bool = flag("Append them to your own records.", "--import"),
    as_json: bool = options.JSON,
) -> None:
    from compiler.records.folders import shipped_folder, user_folder
    from compiler.records.record_set import coverage, essential, merged, newest_of_models, summary
    from compiler.records.records import Loaded, RecordWriter, read, write_all

    loaded = Loaded()
    for path in paths or [shipped_folder(), user_folder()]:
        loaded.extend(read(path))
    for problem in loaded.problems:
        print_note(problem)
    records, models = merged(loaded.records), newest_of_models(loaded.models)
    if best:
        records = essential(records)
    lines = summary(records)
    if as_json:
        covered = [asdict(line) for line in coverage(records, models)]
        print_json({"rules": [asdict(line) for line in lines], "targets": covered})
    else:
        _print_coverage(coverage(records, models), loaded.targets)
        _print(lines, loaded.targets)
        _print_models(models, loaded.targets)
    if output is not None:
        print_line(f"wrote {write_all(output, loaded.targets, records, models)} records to {output}")
    if take_over:
        unknown = sum(record.target not in loaded.targets for record in records)
        if unknown:
            print_note(f"{unknown} records ignored: the line that describes their target is missing")
        for target, description in loaded.targets.items():
            with RecordWriter.in_folder(user_folder(), description) as writer:
                target_records = [record for record in records if record.target == target]
                for record in target_records:
                    writer.append(record)
                for model in models:
                    if model.target == target:
                        writer.append(model)
                print_line(f"added {len(target_records)} records to {writer.path}")


def _print(lines: Any, targets: Any) -> None:
    if not lines:
        print_line("no records")
        return
    rows = [
        (
            _target_text(line.target, targets),
            line.measure,
            f"{line.rule} (version {line.version})",
            str(line.tasks),
            str(line.trials),
            str(line.failed),
            f"{line.gain:.2f}" if line.gain is not None else "",
        )
        for line in lines
    ]
    columns = ("target", "measure", "rule", "kernels", "trials", "failed", "gain")
    print_table(columns, rows, ("kernels", "trials", "failed", "gain"))


def _print_coverage(lines: Any, targets: Any) -> None:
    """Print the targets with records, and the measure of each."""

    rows = [
        (_target_text(line.target, targets), line.measure, str(line.kernels), str(line.models), str(line.changed))
        for line in lines
    ]
    if rows:
        columns = ("target", "measure", "kernels", "models", "models changed")
        print_table(columns, rows, columns[2:])


def _print_models(models: Any, targets: Any) -> None:
    """Print the settings chosen for whole models, and their gain."""

    rows = []
    for line in models:
        times = ("", "", "")
        if line.untuned is not None and line.tuned is not None:
            gain = f"{line.untuned / line.tuned:.3f}"
            times = (_cost(line, line.untuned), _cost(line, line.tuned), gain)
        changed = str(len(line.choices) + len(line.settings))
        rows.append((_target_text(line.target, targets), line.name or line.model, line.measure.text, changed, *times))
    if rows:
        columns = ("target", "model", "measure", "changed", "untuned", "tuned", "gain")
        print_table(columns, rows, columns[3:])


def _cost(line: Any, cost: float) -> str:
    """Format the cost of a whole model in the unit of its measure."""

    return format_seconds(cost) if line.measure.unit == "s" else f"{cost:,.0f} {line.measure.unit}"


def _target_text(target: str, targets: Any) -> str:
    description = targets.get(target)
    if description is None:
        return target

    machine, tvm_options = description["machine"], description["engine_target"]
    if "multiprocessors" in machine:
        return f"{tvm_options['arch']}, {plural(machine['multiprocessors'], 'multiprocessor')}, {target[:8]}"
    return f"{tvm_options.get('mcpu') or machine['architecture']}, {plural(machine['cores'], 'core')}, {target[:8]}"
