"""Tuning on devices behind TVM's RPC server and tracker, here on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import compiler
from compiler.artifact import KeyKind, write_new_keys
from compiler.device import compatibility
from compiler.device.credentials import load_credentials
from compiler.device.programs import device_programs
from compiler.errors import DeviceError, OptionError
from compiler.records.records import read
from compiler.tuning.measuring.device_names import parse_device
from compiler.tuning.measuring.fleet import with_fleets
from compiler.tuning.measuring.messages import Effort, Outcome, WorkerSetup
from compiler.tuning.measuring.pool import DeviceLostError, MeasurementPool, Trial
from compiler.tuning.state import Progress
from compiler.tuning.tune import check_device
from tests.compiler.device.emulators import target_that_runs
from tests.compiler.device.servers import device_server
from tests.compiler.tuning.kernels import product_task, target
from tests.compiler.tuning.misbehaving_builder import Misbehaving
from tests.compiler.tuning.rpc import rpc_server, rpc_tracker, wait_for_servers
from tests.targets.cuda_models import chain

_PATIENCE = 300.0  # seconds for an answer, of a machine that others use too


def test_device_names() -> None:
    assert parse_device("pi:9090") == (None, "pi", 9090)
    assert parse_device("boards@10.0.0.1:9190") == ("boards", "10.0.0.1", 9190)
    for text in ("pi", "pi:", ":9090", "pi:99999", "key@"):
        with pytest.raises(OptionError, match="HOST:PORT"):
            parse_device(text)


def test_a_fleet_goes_on_when_a_server_is_lost() -> None:
    task = product_task()
    with rpc_tracker() as tracker, ExitStack() as servers:
        options, device = ("--tracker", f"127.0.0.1:{tracker}", "--key", "boards"), f"boards@127.0.0.1:{tracker}"
        closing: dict[str, ExitStack] = {}
        for _ in range(3):
            each = servers.enter_context(ExitStack())
            closing[f"127.0.0.1:{each.enter_context(rpc_server(*options))}"] = each
        wait_for_servers(device, 3)
        with pytest.raises(OptionError, match="no server with the key 'others'; it has boards"):
            with_fleets([f"others@127.0.0.1:{tracker}"])
        killed: list[str] = []

        def kill(_: Trial, outcome: Outcome) -> None:
            if not killed:
                killed.append(outcome.device)
                closing[outcome.device].close()

        with MeasurementPool(target(), with_fleets([device]), builders=1, measure_timeout=_PATIENCE) as pool:
            assert len(pool.measurers) == 3
            pool.define(task.kernel)
            assert pool.prepare([task.key]) == {}
            trials = [Trial(task.key, config, Effort(0.02)) for config in list(task.space)[:9]]
            outcomes = pool.trials(trials, kill)
            assert pool.lost in (killed, [])
    assert [each.status for each in outcomes] == ["ok"] * 9, [each.note for each in outcomes]
    # How many of the others come in before the end depends on how fast their workers start.
    assert [each.device for each in outcomes].count(killed[0]) == 1
    assert {each.device for each in outcomes} <= set(closing)


def test_a_server_that_is_gone_is_no_fault_of_a_candidate() -> None:
    task = product_task()
    with MeasurementPool(target(), ["127.0.0.1:9"], builders=1, measure_timeout=120.0) as pool:
        pool.define(task.kernel)
        assert pool.prepare([task.key]) == {}
        outcomes: list[Outcome] = []
        with pytest.raises(DeviceLostError, match=r"127.0.0.1:9 does not answer"):
            pool.trials([Trial(task.key, task.default, Effort(0.02))], lambda _, outcome: outcomes.append(outcome))
    assert outcomes == []


def test_a_server_measures_until_it_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.tuning.tune.MeasurementPool", partial(MeasurementPool, measure_timeout=_PATIENCE))
    with ExitStack() as server:
        device = f"127.0.0.1:{server.enter_context(rpc_server())}"
        settings: Any = {"records": tmp_path, "threads": 1, "devices": [device], "cost_model": "roofline"}
        result = compiler.tune(chain(24, 48), trials=2, **settings)

        def unplug(progress: Progress) -> None:
            if progress.trials >= 2:  # two trials may be reported at once
                server.close()

        with pytest.raises(DeviceLostError, match="on record") as error:
            compiler.tune(chain(24, 48), trials=20, progress=unplug, **settings)
    assert "again" in (error.value.hint or "")
    assert f"device {device}: no report on whether it can run target 'host' (no tensorwright-server)" in result.problems
    records = read(tmp_path).records
    assert len(records) >= 4
    assert {(record.status, record.device) for record in records} == {("ok", device)}


def test_a_device_that_lies_about_its_processor_is_refused() -> None:
    """The first kernel ends its server's session, as an unsupported instruction would."""
    task, builder = product_task(), Misbehaving(WorkerSetup(target=target()))
    builder.handle(task.kernel)
    with (
        rpc_server() as port,
        MeasurementPool(target(), [f"127.0.0.1:{port}"], builders=1, measure_timeout=_PATIENCE) as pool,
    ):
        pool.define(task.kernel)
        pool.set_reference(task.key, builder.misbehaving(task.key, "crash"))
        with pytest.raises(DeviceError, match=r"is reachable, but cannot run kernels of target 'host'") as error:
            pool.trials([Trial(task.key, task.default, Effort(0.02))], lambda _trial, _outcome: None)
    assert "name its own target" in (error.value.hint or "")


def test_a_device_that_was_never_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be reached"):
        compiler.tune(chain(24, 48), trials=2, records=tmp_path, devices=["127.0.0.1:9"])


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
