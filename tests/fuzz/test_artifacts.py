"""The artifact suite itself: its cases pass, get past the checksums, and detect defects."""

from __future__ import annotations

from collections import Counter

import pytest

from compiler.artifact import read_artifact
from compiler.runtime import load
from tests.fuzz import artifacts
from tests.fuzz.artifact_mutations import STRUCTURE_MUTATIONS, Parts


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> artifacts.Samples:
    return artifacts.prepare(tmp_path_factory.mktemp("fuzz"))


def test_the_samples_are_sound(samples: artifacts.Samples) -> None:
    for content in samples.files:
        module = load(content)
        if module.manifest.reference_outputs:
            module.verify()


def test_taking_apart_and_assembling_changes_nothing_that_counts(samples: artifacts.Samples) -> None:
    for content in samples.files:
        parts = Parts.of(content)
        parts.signatures = b""
        assert read_artifact(parts.assemble()).manifest == read_artifact(content).manifest


def test_no_case_fails(samples: artifacts.Samples) -> None:
    outcomes = [artifacts.case(samples, seed) for seed in range(400)]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert {mutation.__name__ for mutation in STRUCTURE_MUTATIONS} <= {outcome.label for outcome in outcomes}
    classes = Counter(outcome.detail.partition(":")[0] for outcome in outcomes)
    # Past the checksums: numbers that differ from the reference run, shapes that differ from the code's.
    assert classes["VerificationError"] > 0
    assert classes["InputError"] + classes["InternalError"] > 0


def test_an_accepted_damage_would_be_seen(samples: artifacts.Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "load", lambda *_, **__: load(samples.files[0]))
    kinds = {artifacts.case(samples, seed).kind for seed in range(50)}
    assert "wrong" in kinds
