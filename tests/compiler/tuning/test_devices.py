"""Tuning on devices behind TVM's RPC server and tracker, here on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import compiler
from compiler.artifact import KeyKind, write_new_keys
from compiler.device import compatibility
from compiler.device.credentials import load_credentials
from compiler.device.programs import device_programs
from compiler.errors import DeviceError, OptionError
from compiler.records.records import read
from compiler.tuning.measuring.devices import check_device
from compiler.tuning.measuring.messages import Effort, Outcome
from compiler.tuning.measuring.pool import DeviceLostError, MeasurementPool, Trial
from compiler.tuning.measuring.runners import parse_device
from compiler.tuning.progress import Progress
from tests.compiler.device.emulators import target_that_runs
from tests.compiler.device.servers import device_server
from tests.compiler.tuning.kernels import product_task, target
from tests.compiler.tuning.rpc import rpc_server, rpc_tracker
from tests.fuzz.tuning import convolution_model


def test_device_names() -> None:
    assert parse_device("pi:9090") == (None, "pi", 9090)
    assert parse_device("boards@10.0.0.1:9190") == ("boards", "10.0.0.1", 9190)
    for text in ("pi", "pi:", ":9090", "pi:99999", "key@"):
        with pytest.raises(OptionError, match="HOST:PORT"):
            parse_device(text)


def test_tuning_on_a_server(tmp_path: Path) -> None:
    with rpc_server() as port:
        device = f"127.0.0.1:{port}"
        result = compiler.tune(
            convolution_model(),
            trials=6,
            records=tmp_path,
            threads=1,
            devices=[device],
            cost_model="roofline",
        )
    (unchecked,) = [each for each in result.problems if "measured peak" not in each]  # others may use this machine
    assert unchecked == f"device {device}: no report on whether it can run target 'host' (no tensorwright-server)"
    assert result.trials == 6 or any("limit" in task.finished for task in result.tasks)
    records = read(tmp_path).records
    assert {record.device for record in records} == {device}
    assert [record.status for record in records] == ["ok"] * len(records)


def test_a_fleet_behind_a_tracker_measures_in_parallel() -> None:
    task = product_task()
    with rpc_tracker() as tracker:
        options = ("--tracker", f"127.0.0.1:{tracker}", "--key", "boards")
        with rpc_server(*options), rpc_server(*options):
            device = f"boards@127.0.0.1:{tracker}"
            with MeasurementPool(target(), [device, device], builders=1) as pool:
                pool.define(task.kernel)
                assert pool.prepare([task.key]) == {}
                trials = [Trial(task.key, config, Effort(0.02)) for config in list(task.space)[:6]]
                outcomes = pool.trials(trials, lambda _trial, _outcome: None)
                assert [outcome.status for outcome in outcomes] == ["ok"] * 6, [each.note for each in outcomes]
                assert [worker.starts for worker in pool.measurers] == [1, 1]


def test_a_server_that_is_gone_is_no_fault_of_a_candidate() -> None:
    task = product_task()
    with MeasurementPool(target(), ["127.0.0.1:9"], builders=1, measure_timeout=120.0) as pool:
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        outcomes: list[Outcome] = []
        with pytest.raises(DeviceLostError, match=r"127.0.0.1:9 does not answer"):
            pool.trials([Trial(task.key, task.default, Effort(0.02))], lambda _, outcome: outcomes.append(outcome))
    assert outcomes == []


def test_a_device_that_goes_away_costs_nothing_that_was_measured(tmp_path: Path) -> None:
    with ExitStack() as server:
        device = f"127.0.0.1:{server.enter_context(rpc_server())}"

        def unplug(progress: Progress) -> None:
            if progress.trials == 4:
                server.close()

        with pytest.raises(DeviceLostError, match="on record") as error:
            compiler.tune(
                convolution_model(),
                trials=20,
                records=tmp_path,
                threads=1,
                devices=[device],
                cost_model="roofline",
                progress=unplug,
            )
    assert "again" in (error.value.hint or "")
    records = read(tmp_path).records
    assert len(records) >= 4
    assert {record.status for record in records} == {"ok"}


def test_a_device_that_was_never_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be reached"):
        compiler.tune(convolution_model(), trials=2, records=tmp_path, devices=["127.0.0.1:9"])


@pytest.fixture(scope="module")
def cortex_a72(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server on one."""
    target, folder = target_that_runs("raspberry-pi-4"), tmp_path_factory.mktemp("server") / "modules"
    program = device_programs(target) / "tensorwright-server"
    with device_server([*target.emulator(), "-cpu", "cortex-a72"], program, folder) as address:
        yield address


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raspberry-pi-5", r"needs processor features that the device at \S+ lacks: dotprod, fullfp16, lse, rdm"),
        ("riscv64-linux", r"is for riscv64, and the device at \S+ is aarch64\n.*choose the device's own target"),
    ],
)
def test_a_device_that_can_not_run_the_target_is_refused_first(
    cortex_a72: str, name: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=f"target '{name}' {reason}"):
        compiler.tune(b"no model: it is not looked at", name, trials=2, records=tmp_path, devices=[cortex_a72])
    assert not list(tmp_path.iterdir())


def test_a_server_of_another_version_is_refused_first(
    cortex_a72: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "PROTOCOL", 3)
    with pytest.raises(DeviceError, match=r"with protocol 2, but this version uses protocol 3\n.*create a new bundle"):
        compiler.tune(b"", "raspberry-pi-4", trials=2, records=tmp_path, devices=[cortex_a72])
    monkeypatch.undo()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.99")
    with pytest.raises(DeviceError, match=r"kernels are compiled with TVM 0.99, and the server at \S+ has TVM"):
        compiler.tune(b"", "raspberry-pi-4", trials=2, records=tmp_path, devices=[cortex_a72])


def test_a_device_that_was_asked_measures(tmp_path: Path) -> None:
    """Over an encrypted connection; the question leaves nothing behind."""
    board, task = target_that_runs("raspberry-pi-4"), product_task()
    keys = {name: write_new_keys(tmp_path / f"{name}.pem", KeyKind.CONNECTION) for name in ("device", "laptop")}
    program = device_programs(board) / "tensorwright-server"
    options = ("--key", tmp_path / "device.pem", "--client-key", keys["laptop"])
    credentials = load_credentials(tmp_path / "laptop.pem", keys["device"])
    with device_server(board.emulator(), program, tmp_path / "modules", *options) as address:
        assert check_device(address, board, credentials) is None
        assert check_device(address, board, credentials) is None
        with MeasurementPool(board, [address], builders=1, credentials={address: credentials}) as pool:
            pool.define(task.kernel)
            assert pool.prepare([task.key]) == {}
            (outcome,) = pool.trials([Trial(task.key, task.default, Effort(0.02))], lambda _trial, _outcome: None)
    assert outcome.status == "ok", outcome.note
