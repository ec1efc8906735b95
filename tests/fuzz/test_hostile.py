"""A small part of the hostile suite, and defects that it must detect; all of it: `python -m tests.fuzz hostile`."""

from __future__ import annotations

import pytest

from tests.fuzz import hostile_planted
from tests.fuzz.hostile import documented, guarded_memory
from tests.fuzz.hostile.running import run_subjects
from tests.fuzz.hostile.verdict import Verdict

pytestmark = pytest.mark.skipif(not guarded_memory.is_available(), reason="needs Linux and gcc")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    chosen = range(len(hostile_planted.subjects()))
    folder = tmp_path_factory.mktemp("hostile")
    return run_subjects(chosen, folder, catalog=hostile_planted.__name__, workers=2)


def _kinds(verdicts: list[Verdict], subject: str) -> dict[str, str]:
    return {each.run: each.ours for each in verdicts if each.subject == subject}


def test_reads_and_writes_beside_a_buffer_are_seen(verdicts: list[Verdict]) -> None:
    assert _kinds(verdicts, "reads") == {"i=3": "equal", "i=-1": "guard hit"}
    assert _kinds(verdicts, "writes") == {"i=3": "equal", "i=16": "guard hit"}


def test_memory_that_was_never_written_is_seen(verdicts: list[Verdict]) -> None:
    assert _kinds(verdicts, "forgets") == {"i=15": "equal", "i=3": "nondeterministic"}


def test_hostile_values_end_in_errors_or_in_the_numbers_of_onnxruntime(verdicts: list[Verdict]) -> None:
    planted = ("reads", "writes", "forgets")
    own = [verdict for verdict in verdicts if verdict.subject not in planted]
    assert [verdict for verdict in own if verdict.failed or verdict.stricter] == []
    assert {verdict.ours for verdict in own} == {"equal", "refused"}


def test_the_documentation_says_what_the_suite_takes_it_to_say() -> None:
    assert [each.text for each in documented.STATEMENTS if each.text not in documented.page()] == []
