"""TVM's own tuner, MetaSchedule, on a model: `tune` runs a number of trials, `build` compiles with the best.
Both run in separate processes, started by `_tuner_metaschedule`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import relax
from tvm.s_tir import meta_schedule

import targets
from compiler.frontends.source import import_model

_FILES = ("database_workload.json", "database_tuning_record.json")
_TRIALS_A_ROUND = 16  # per task; with more, the first round over all tasks of a CNN takes ten minutes


def lowered(path: Path, shapes: Mapping[str, Any], target: Any) -> Any:
    """Lower the model with TVM's own pipeline, as in its tuning documentation."""
    mod = import_model(str(path), shapes=shapes).mod
    with target:
        return relax.get_pipeline("zero")(mod)


def tune(mod: object, target: object, folder: Path, trials: int) -> None:
    """Search; the records are in the folder. A round of a task is recorded when the search returns to that task or
    ends, so it needs a limit: a killed search has recorded little or nothing."""
    meta_schedule.relax_integration.tune_relax(
        mod, {}, target, str(folder), max_trials_global=trials, num_trials_per_iter=_TRIALS_A_ROUND, seed=1
    )


def mended(folder: Path) -> int:
    """Remove incomplete last lines, which a killed process left, from the folder's files. Returns the record count."""
    counts = []
    for name in _FILES:
        path = folder / name
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        while lines and not _is_json(lines[-1]):
            lines.pop()
        path.write_text("".join(f"{line}\n" for line in lines))
        counts.append(len(lines))
    return counts[-1]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def build(mod: Any, target: Any, folder: Path, output: Path) -> int:
    """Compile with the folder's records into a shared library. Returns the number of records."""
    count = mended(folder)
    database = meta_schedule.database.JSONDatabase(*(str(folder / name) for name in _FILES))
    with target, database, tvm.transform.PassContext(opt_level=3):
        tuned = relax.transform.MetaScheduleApplyDatabase()(mod)
        relax.build(tuned, target).export_library(str(output))
    return count


def main() -> int:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("tune", "build"))
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", type=json.loads, required=True)
    parser.add_argument("--target", default="host")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    target = targets.get(options.target).tvm_target()
    shapes = {name: tuple(shape) for name, shape in options.shapes.items()}
    mod = lowered(options.model, shapes, target)
    if options.step == "tune":
        tune(mod, target, options.folder, options.trials)
    else:
        print(json.dumps({"records": build(mod, target, options.folder, options.output)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
