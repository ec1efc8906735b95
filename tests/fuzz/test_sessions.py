"""Sessions of the C API under sanitizers: damaged files of states, wrong calls, and several threads."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz import sessions
from tests.fuzz.device_driver import Driver


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> sessions.Samples:
    return sessions.prepare(tmp_path_factory.mktemp("fuzz"))


def test_no_damaged_file_of_states_fails(samples: sessions.Samples) -> None:
    outcomes = [sessions.case(samples, seed) for seed in range(120)]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert min(Counter(outcome.kind for outcome in outcomes)[kind] for kind in ("right", "refused")) > 5


def test_wrong_calls_and_freed_modules(samples: sessions.Samples) -> None:
    driver, file = Driver(samples.program), samples.folder / "saved"
    answers = driver.ask(["sessions", str(samples.module), str(file)]).splitlines()
    said = dict(line.split(": ", 1) for line in answers if not line.startswith(" "))
    assert {call: answer for call, answer in said.items() if answer != "ok"} == {
        "open no module": "module is NULL",
        "open to nowhere": "session is NULL",
        "open -1 rows": "a capacity of -1 rows",
        "open 2^62 rows": f"a capacity of {1 << 62} rows",
        "run no session": "session is NULL",
        "run without inputs": "inputs is NULL",
        "describe input 99": "description is NULL",
        "rewind an empty session": "the session cannot be rewound: state 'mean' is replaced by each run",
        "rewind -1": "the session cannot be rewound: state 'mean' is replaced by each run",
        "load no file": "path is NULL",
        "load a module": f"{samples.module} is not a file of a session's states",
        "save nowhere": "/nowhere/at/all cannot be written",
        "fork to nowhere": "fork is NULL",
    }
    driver.close()


def test_threads(samples: sessions.Samples) -> None:
    driver = Driver(samples.program)
    assert driver.ask(["threads", str(samples.module)]) == "ok"
    driver.close()
