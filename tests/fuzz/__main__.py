"""Fuzz a part of the compiler: `python -m tests.fuzz SUITE --cases N --seed S`.

A suite is a module of this package, named in `SUITES`, with `prepare(folder) -> context`, called once, and
`case(context, seed) -> Outcome`, called in worker processes. Every case must end in a right result or in an error of
this project. `MEMORY_BYTES` and `SECONDS`, if a suite has them, limit the address space of a worker and the processor
time of a case. The suite "hostile" is a catalog instead (`tests.fuzz.hostile`), and takes --only and --workers. "serve"
attacks a server (`tests.fuzz.serving`); it takes --only, and --cases and --seed of random requests.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.fuzz.hostile import command as hostile
from tests.fuzz.outcome import Outcome, error_table, outcome_table
from tests.fuzz.serving import command as serving
from tests.fuzz.worker_pool import MEMORY_BYTES, SECONDS, run_cases

SUITES = {
    "artifacts": "tests.fuzz.artifacts",
    "device": "tests.fuzz.device",
    "device-server": "tests.fuzz.device_server",
    "files": "tests.fuzz.files",
    "interrupts": "tests.fuzz.interrupts",
    "models": "tests.fuzz.models",
    "graphs": "tests.fuzz.graphs",
    "sessions": "tests.fuzz.sessions",
    "symbolic": "tests.fuzz.symbolic",
    "states": "tests.fuzz.states",
    "torch": "tests.fuzz.torch_nets",
    "tuning": "tests.fuzz.tuning",
}
_SHOWN_FAILURES = 20


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("suite", choices=[*SUITES, "hostile", "serve"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; case i has the seed S + i")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="of processor time, after which a case hangs")
    parser.add_argument("--target", help="graphs and torch: what to compile for; host unless given")
    parser.add_argument("--only", help='hostile: the subjects whose name holds this text or, after a "!", does not')
    parser.add_argument("--here", action="store_true", help="run in this process, to debug one case")
    return parser.parse_args()


def main() -> int:
    """Run a suite; 0 if nothing failed."""
    options = _options()
    if options.suite == "hostile":
        return hostile.run(options.only, options.workers, Console(width=200))
    if options.suite == "serve":
        return serving.run(options.cases, options.seed, options.only, Console(width=200))
    suite = importlib.import_module(SUITES[options.suite])
    console = Console()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tensorwright-fuzz-") as folder:
        context = suite.prepare(Path(folder), **({"target": options.target} if options.target else {}))
        seeds = range(options.seed, options.seed + options.cases)
        if options.here:
            outcomes = [suite.case(context, seed) for seed in seeds]
        else:
            limits = {
                "seconds": options.seconds or getattr(suite, "SECONDS", SECONDS),
                "memory_bytes": getattr(suite, "MEMORY_BYTES", MEMORY_BYTES),
            }
            running = run_cases(suite.case, context, seeds, workers=options.workers, **limits)
            outcomes = []
            with contextlib.suppress(KeyboardInterrupt):  # the table of the cases so far
                for outcome in track(running, total=options.cases, console=console, description=options.suite):
                    outcomes.append(outcome)
    return _report(outcomes, options.suite, time.monotonic() - start, console)


def _report(outcomes: list[Outcome], suite: str, seconds: float, console: Console) -> int:
    console.print(outcome_table(outcomes, f"{suite}: {len(outcomes)} cases in {seconds:.0f} s"))
    console.print(error_table(outcomes, "errors raised"))
    failures = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failures[:_SHOWN_FAILURES]:
        console.print(f"seed {outcome.seed}: {outcome.kind} ({outcome.label}): {outcome.detail}", markup=False)
    if len(failures) > _SHOWN_FAILURES:
        console.print(f"... and {len(failures) - _SHOWN_FAILURES} more")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
