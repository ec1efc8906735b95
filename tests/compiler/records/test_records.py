"""Record files survive killed writers, concurrent writers, newer versions and stale rules."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import StorageError
from compiler.records.identity import file_name, fingerprint
from compiler.records.record_set import (
    alternative_taken_over,
    best,
    coverage,
    decisive,
    deduplicated,
    merged,
    newest_of_models,
    summary,
    taken_over,
    without_stale,
)
from compiler.records.records import ChosenKernel, ModelLine, Record, RecordWriter, encode, read, write_all
from targets.measure import Measure

DESCRIPTION: dict[str, Any] = {"machine": {"cores": 2, "architecture": "x86_64"}, "engine_target": {"mcpu": "znver4"}}
TARGET = fingerprint(DESCRIPTION)


def record(number: int = 0, **changes: Any) -> Record:
    values = {
        "target": TARGET,
        "rule": "matmul",
        "rule_version": 2,
        "workload": 'Work{"rows":1}',
        "config": {"rows": number, "pack": True},
        "seconds": 1e-3 + number * 1e-5,
        "unix_time": number,
    }
    return Record(**{**values, **changes})


def _append_many(path: str, first: int, count: int) -> None:
    with RecordWriter(path, DESCRIPTION) as writer:
        for number in range(first, first + count):
            writer.append(record(number, note="x" * (number % 300)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with RecordWriter.in_folder(tmp_path, DESCRIPTION) as writer:
        writer.append(record(1, spread=0.02, runs=9))
        writer.append(record(2, seconds=None, status="timeout"))
    loaded = read(tmp_path)
    assert [each.model_copy(update={"origin": ""}) for each in loaded.records] == [
        record(1, spread=0.02, runs=9),
        record(2, seconds=None, status="timeout"),
    ]
    assert loaded.records[0].origin == str(tmp_path / file_name(DESCRIPTION))
    assert loaded.targets == {TARGET: DESCRIPTION}
    assert loaded.problems == []


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(str(path), first, 300)) for first in (0, 1000)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(60)
        assert each.exitcode == 0
    loaded = read(path)
    assert loaded.problems == []
    assert sorted(each.unix_time for each in loaded.records) == [*range(300), *range(1000, 1300)]


@pytest.mark.parametrize("kept", [1, 10, 60])
def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "records.jsonl"
    _append_many(str(path), 0, 3)
    with path.open("ab") as file:
        file.write(encode(record(3))[:kept])
    assert len(read(path).records) == 3
    assert read(path).problems == []
    _append_many(str(path), 10, 2)
    assert [each.unix_time for each in read(path).records] == [0, 1, 2, 10, 11]


def test_damage_in_the_middle_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _append_many(str(path), 0, 2)
    with path.open("ab") as file:
        file.write(b"\x00\xff not json\n[1, 2]\n" + json.dumps({"v": 1, "kind": "trial"}).encode() + b"\n")
    _append_many(str(path), 5, 1)
    loaded = read(path)
    assert [each.unix_time for each in loaded.records] == [0, 1, 5]
    assert loaded.problems == [f"{path}: 3 damaged lines ignored"]


def test_what_is_no_record_at_all_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _append_many(str(path), 0, 1)
    good = json.loads(encode(record(1)))
    lines = [
        b"[" * 100_000,
        b'{"v": ' + b"9" * 5000 + b"}",
        json.dumps({**good, "seconds": -1.0}).encode(),
        json.dumps({**good, "seconds": "fast"}).encode(),
        json.dumps({**good, "config": {"rows": [1, 2]}}).encode(),
        json.dumps({**good, "status": "splendid"}).encode(),
        json.dumps({"v": 1, "kind": "target", "target": TARGET, "description": {"machine": 3}}).encode(),
    ]
    with path.open("ab") as file:
        file.write(b"\n".join(lines) + b"\n")
    loaded = read(path)
    assert [each.unix_time for each in loaded.records] == [0]
    assert loaded.targets == {TARGET: DESCRIPTION}
    assert loaded.problems == [f"{path}: {len(lines)} damaged lines ignored"]


def test_random_damage_costs_the_lines_it_hits(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _append_many(str(path), 0, 20)
    data = path.read_bytes()
    lines = {number: encode(record(number, note="x" * number)).rstrip() for number in range(20)}
    assert set(lines.values()) < set(data.split(b"\n"))
    generator = np.random.default_rng(0)
    for _ in range(100):
        hit = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            hit[place] = int(generator.integers(0, 256))
        path.write_bytes(hit[: int(generator.integers(len(hit) // 2, len(hit) + 1))])
        present = set(path.read_bytes().split(b"\n"))
        whole = {number for number, line in lines.items() if line in present}
        assert whole <= {each.unix_time for each in read(path).records}


def _append_until_full(path: str, room: int, results: Any) -> None:
    size = Path(path).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
    written = 0
    try:
        with RecordWriter(path, DESCRIPTION) as writer:
            for number in range(1000, 1100):
                writer.append(record(number))
                written += 1
    except StorageError as error:
        results.put((written, str(error)))


@pytest.mark.parametrize("room", [0, 1, 300, 1000])
def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path, room: int) -> None:
    path = tmp_path / "records.jsonl"
    _append_many(str(path), 0, 3)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_append_until_full, args=(str(path), room, results))
    process.start()
    written, message = results.get(timeout=600)
    process.join(30)
    assert "was not written" in message
    assert path.read_bytes().endswith(b"\n")
    assert [each.unix_time for each in read(path).records] == [0, 1, 2, *range(1000, 1000 + written)]
    assert read(path).problems == []


def test_records_of_a_newer_schema_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    newer = {**json.loads(encode(record(1))), "v": 99, "seconds": {"median": 1}}
    path.write_text(json.dumps(newer) + "\n")
    loaded = read(path)
    assert loaded.records == []
    assert "1 record of a newer version" in loaded.problems[0]


def test_stale_versions_are_ignored_with_one_line_a_rule() -> None:
    records = [record(0), record(1, rule_version=1), record(2, rule_version=1), record(3, rule="gone")]
    kept, lines = without_stale(records, {"matmul": 2})
    assert kept == [record(0)]
    assert len(lines) == 2
    assert "2 tuning records of 'matmul' version 1 ignored: the rule is at version 2 now" in lines[1]


def test_best_needs_more_than_the_spread() -> None:
    default = record(0, seconds=1e-3, is_default=True, spread=0.05)
    slightly = record(1, seconds=0.97e-3)
    clearly = record(2, seconds=0.9e-3)
    assert best([default, slightly]) == default
    assert best([default, slightly, clearly]) == clearly
    assert best([record(3, seconds=None, status="crash")]) is None


def test_luck_does_not_win_over_a_comparison() -> None:
    default = record(0, seconds=1e-3, is_default=True, compared=True)
    leader, lucky = record(1, seconds=0.8e-3, compared=True), record(2, seconds=0.7e-3)
    assert best([default, leader, lucky]) == leader
    assert best([default, lucky]) == default


def test_a_new_default_is_not_replaced_by_what_beat_the_old_one() -> None:
    old = record(0, seconds=1e-3, is_default=True)
    fast, slow = record(1, seconds=0.5e-3), record(2, seconds=2e-3)
    assert taken_over([old, fast, slow], fast.config.__eq__) == fast.model_copy(update={"is_default": True})
    assert taken_over([old, fast, slow], slow.config.__eq__) == fast
    assert taken_over([old, fast, slow], {"rows": 77, "pack": True}.__eq__) is None


def test_a_model_takes_over_what_won_in_another_and_lost_in_none() -> None:
    def inside(number: int, seconds: float, model: str) -> Record:
        return record(number, seconds=seconds, in_model=True, model=model, is_default=number == 0)

    alone = [record(0, seconds=1e-3, is_default=True), record(1, seconds=0.5e-3), record(2, seconds=0.8e-3)]
    default = alone[0].config
    assert taken_over(alone, default.__eq__) == alone[1]
    won = [inside(0, 3e-3, "a"), inside(2, 2.7e-3, "a")]
    assert taken_over([*alone, *won], default.__eq__) == won[1]
    lost = [inside(0, 2e-3, "b"), inside(2, 2.1e-3, "b")]
    assert taken_over([*alone, *won, *lost], default.__eq__) == alone[1]
    both = [*lost, inside(0, 2e-3, "c"), inside(1, 2.1e-3, "c")]
    assert taken_over([*alone, *won, *both], default.__eq__) == alone[0]


def test_what_is_little_faster_alone_is_not_taken_over() -> None:
    default, better = record(0, seconds=1e-3, is_default=True), record(1, seconds=0.97e-3)
    assert best([default, better]) == better
    assert taken_over([default, better], default.config.__eq__) == default


def test_a_way_is_taken_over_when_it_won_in_a_model() -> None:
    def first(seconds: float, **fields: Any) -> Record:
        return record(0, seconds=seconds, is_default=True, **fields)

    def other(seconds: float, **fields: Any) -> Record:
        return record(5, workload="Way{}", seconds=seconds, **fields)

    default = first(1.0).config
    assert alternative_taken_over([[first(1.0)], [other(0.5)]], default.__eq__) == (0, None)
    won = other(0.5, in_model=True, model="a", spread=0.1)
    assert alternative_taken_over([[first(1.0, in_model=True, model="a")], [won]], default.__eq__) == (1, won)
    assert alternative_taken_over([[first(1.0, in_model=True, model="b")], [won]], default.__eq__) == (0, None)
    assert alternative_taken_over([[first(0.54, in_model=True, model="a")], [won]], default.__eq__) == (0, None)
    untuned = [first(1.0, in_model=True, model=each) for each in "ab"]
    assert alternative_taken_over([untuned, [won, other(1.1, in_model=True, model="b")]], default.__eq__) == (0, None)
    assert alternative_taken_over([[], [won]], default.__eq__) == (0, None)


def model_line(time: int = 1, **fields: Any) -> ModelLine:
    return ModelLine(**{"target": TARGET, "model": "m", "unix_time": time, **fields})


def test_lines_of_models_are_written_read_and_kept(tmp_path: Path) -> None:
    choice = ChosenKernel(task="a", way="b", config={"rows": 1}, default={"rows": 2})
    line = model_line(2, choices=(choice,), untuned=2.0, tuned=1.5, spread=0.01, name="net")
    with RecordWriter.in_folder(tmp_path, DESCRIPTION) as writer:
        writer.append(record(1))
        writer.append(model_line(1))
        writer.append(line)
    loaded = read(writer.path)
    assert loaded.problems == []
    assert [each.origin for each in loaded.models] == [str(writer.path)] * 2
    (newest,) = newest_of_models(loaded.models)
    assert newest.model_copy(update={"origin": ""}) == line
    copy = tmp_path / "copy.jsonl"
    assert write_all(copy, loaded.targets, loaded.records, [newest]) == 1
    assert read(copy).models[0].choices == (choice,)


def test_a_model_has_a_line_for_each_measure_and_a_timed_one_decides() -> None:
    modelled = Measure("modelled", "llvm-mca", version="1")
    newer = Measure("modelled", "llvm-mca", version="2")
    lines = [model_line(5, measure=modelled), model_line(6, measure=newer), model_line(1)]
    assert newest_of_models(lines) == lines[1:]
    assert decisive(lines) is lines[2]
    assert decisive(lines[:2]) is lines[1]
    assert [each.models for each in coverage([], lines)] == [1, 1]
    records = [record(0, is_default=True), record(0, is_default=True, measure=newer)]
    assert [line.measure for line in summary(records)] == ["modelled: llvm-mca", "timed"]


def test_a_record_never_crosses_to_another_target() -> None:
    other = record(1, target="0" * 16, seconds=1e-6)
    assert deduplicated([record(0), other]) == [record(0), other]
    assert len(summary([record(0), other])) == 2


def test_merge_keeps_each_config_once_and_prefers_success() -> None:
    failed = record(1, seconds=None, status="timeout", unix_time=9)
    assert deduplicated([record(1), failed]) == [record(1)]
    assert merged([record(2), record(1)], [record(1), record(3)]) == [record(1), record(2), record(3)]


def test_summary_counts_and_gains() -> None:
    records = [
        record(0, seconds=2e-3, is_default=True),
        record(1, seconds=1e-3),
        record(2, seconds=None, status="crash"),
    ]
    (line,) = summary(records)
    assert (line.tasks, line.trials, line.failed) == (1, 3, 1)
    assert line.gain == pytest.approx(2.0)


def test_write_all_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    _append_many(str(path), 0, 5)
    assert write_all(path, {TARGET: DESCRIPTION}, [record(2)]) == 1
    assert [each.unix_time for each in read(path).records] == [2]
    assert [each.name for each in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_folder_that_can_not_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="tuning records"):
        RecordWriter.in_folder(tmp_path / "file", DESCRIPTION)


def test_fingerprint_depends_on_what_matters() -> None:
    changed = {**DESCRIPTION, "engine_target": {"mcpu": "znver3"}}
    assert fingerprint(changed) != fingerprint(DESCRIPTION)
    assert fingerprint(json.loads(json.dumps(DESCRIPTION))) == fingerprint(DESCRIPTION)
    assert os.sep not in file_name(DESCRIPTION)
