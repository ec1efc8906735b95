"""Access control of the device server: keys, signatures, and malicious clients. Programs of this machine."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

import compiler
import targets
from compiler.artifact import Artifact, KeyKind, artifact_bytes, read_artifact, sign, write_new_keys
from compiler.cli import main
from compiler.device.connection import Connection, is_loopback
from compiler.device.credentials import Credentials, load_credentials
from compiler.device.noise import Initiator
from compiler.device.programs import device_programs
from compiler.device.push import push
from compiler.device.tunnel import connect_rpc
from compiler.errors import DeviceError, OptionError, SignatureError
from compiler.tuning.tune import check_device
from targets.conformance.models import small_net
from tests.compiler.cli.running import isolated_consoles
from tests.compiler.device.servers import address_of, device_server

_BLOCK = 16 + 32 + 64 + 32  # bytes of a signature block
_HOSTILE = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) { open("MARKER", O_CREAT | O_WRONLY, 0600); }
"""


@dataclass(frozen=True)
class Setting:
    """Keys by name in a folder, modules (signed, unsigned, replaced), and the server's program. The code of `replaced`
    creates the file `ran` in the folder when it is loaded."""

    folder: Path
    program: Path

    def credentials(self, client: str = "laptop", device: str = "device") -> Credentials:
        return load_credentials(self.folder / f"{client}.pem", self.folder / f"{device}.pem.pub")

    @property
    def options(self) -> tuple[object, ...]:
        """Address of a server with keys of both kinds."""
        return ("--key", self.folder / "device.pem", "--client-key", self.folder / "laptop.pem.pub",
                "--trusted-key", self.folder / "release.pem.pub")  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    target = targets.get("host", cores=1)
    if not shutil.which(target.compiler().command[0]):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("keys")
    program = device_programs(target) / "tensorwright-server"
    subprocess.run([program, "--new-key", folder / "device.pem"], check=True, capture_output=True)
    for name in ("laptop", "stranger"):
        write_new_keys(folder / f"{name}.pem", KeyKind.CONNECTION)
    for name in ("release", "other"):
        write_new_keys(folder / f"{name}.pem")
    artifact = compiler.compile(small_net(1), "host", threads=1).artifact
    compiler.artifact.write_artifact(artifact, folder / "unsigned.twm")
    signed = artifact_bytes(artifact, folder / "release.pem")
    (folder / "signed.twm").write_bytes(signed)
    (folder / "hostile.c").write_text(_HOSTILE.replace("MARKER", str(folder / "ran")))
    subprocess.run(["cc", "-shared", "-fPIC", folder / "hostile.c", "-o", folder / "hostile.so"], check=True)
    parts = (artifact.parameters, artifact.reference_inputs, artifact.reference_outputs)
    changed = Artifact(artifact.manifest, memoryview((folder / "hostile.so").read_bytes()), *parts)
    replaced = artifact_bytes(changed, folder / "other.pem")[:-_BLOCK] + signed[-_BLOCK:]
    (folder / "replaced.twm").write_bytes(replaced)
    return Setting(folder, program)


@pytest.fixture(scope="module")
def server(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address and the folder of a server with keys of both kinds."""
    folder = tmp_path_factory.mktemp("server") / "modules"
    with device_server((), setting.program, folder, *setting.options, "--sessions", 2) as address:
        yield address, folder


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_signed_module_is_pushed_over_an_encrypted_connection(server: tuple[str, Path], setting: Setting) -> None:
    address, folder = server
    path = setting.folder / "signed.twm"
    trusted = [setting.folder / "release.pem.pub"]
    result = push(path, address, credentials=setting.credentials(), trusted_keys=trusted, runs=1)
    assert result.difference < 1e-5
    assert names(folder) == ["active.twm"]
    assert (folder / "active.twm").read_bytes() == path.read_bytes()
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SignatureError, match="is not signed"):
        push(setting.folder / "unsigned.twm", address, credentials=setting.credentials(), trusted_keys=trusted)


@pytest.mark.parametrize(
    ("module", "words"),
    [("unsigned", "is not signed; a signature by a trusted key is required"),
     ("replaced", r"the signature by trusted key \w{16}\.\.\. is wrong")],
)  # fmt: skip
def test_code_that_no_trusted_key_signed_does_not_run(
    server: tuple[str, Path], setting: Setting, module: str, words: str
) -> None:
    address, folder = server
    push(setting.folder / "signed.twm", address, credentials=setting.credentials(), runs=1)
    with pytest.raises(DeviceError, match=f"check failed: .*{words}"):
        push(setting.folder / f"{module}.twm", address, credentials=setting.credentials())
    assert not (setting.folder / "ran").exists()
    assert (folder / "active.twm").read_bytes() == (setting.folder / "signed.twm").read_bytes()
    assert names(folder) == ["active.twm"]
    # The steps cannot be left out either.
    with closing(Connection(address, setting.credentials())) as connection:
        for request, reason in (("activate", "after its reference run"), ("verify", "no module was uploaded")):
            with pytest.raises(DeviceError, match=reason):
                connection.call(request, what="step", hint="")


def test_without_trusted_keys_a_signature_is_not_looked_at(setting: Setting, tmp_path: Path) -> None:
    """As documented, code can run here, which proves that the test above would detect it."""
    with device_server((), setting.program, tmp_path / "modules") as address:
        with pytest.raises(DeviceError, match="reference run failed"):
            push(setting.folder / "replaced.twm", address)
        assert (setting.folder / "ran").exists()
        (setting.folder / "ran").unlink()
        assert names(tmp_path / "modules") == []


def test_the_command(server: tuple[str, Path], setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    folder = setting.folder
    push_it = ["push", str(folder / "signed.twm"), server[0], "--runs", "1"]
    keys = ["--key", str(folder / "laptop.pem"), "--device-key", str(folder / "device.pem.pub")]
    with isolated_consoles():
        assert main([*push_it, *keys, "--trusted-key", str(folder / "release.pem.pub")]) == 0
        assert "active" in capsys.readouterr().out
        assert main([*push_it, *keys, "--trusted-key", str(folder / "other.pem.pub")]) == 2
        assert "signed by none of the trusted keys" in capsys.readouterr().err
        for command in (push_it, ["tune", "model.onnx", "--device", server[0]]):
            assert main([*command, *keys[:2]]) == 2
            assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("client", "device", "words"),
    [("stranger", "device", "does not know this client's key"), ("laptop", "stranger", "server with another key"),
     (None, None, "takes encrypted connections of clients that it knows")],
)  # fmt: skip
def test_who_is_not_known_is_refused(
    server: tuple[str, Path], setting: Setting, client: str | None, device: str | None, words: str
) -> None:
    credentials = setting.credentials(client, device) if client and device else None
    with pytest.raises(DeviceError, match=f"refused the connection: .*{words}"):
        push(setting.folder / "signed.twm", server[0], credentials=credentials)


def test_a_recorded_handshake_opens_no_session(server: tuple[str, Path], setting: Setting) -> None:
    """Its replayed first message is answered, but later messages cannot be encrypted, so no session starts."""
    host, _, port = server[0].rpartition(":")
    credentials = setting.credentials()
    first = Initiator(credentials.private_key, credentials.device_key, b"TWNOISE2").first_message()
    for _ in range(2):
        with socket.create_connection((host, int(port)), 30) as recorded:
            recorded.sendall(b"TWNOISE2" + first + struct.pack("<H", 27) + bytes(27))
            answer = recorded.makefile("rb").read()
            assert len(answer) == 8 + 48  # the handshake's answer, and the end
    assert names(server[1].parent) == ["modules"]


def test_the_rpc_of_tvm_is_no_way_around(server: tuple[str, Path], setting: Setting) -> None:
    from tvm import rpc

    host, _, port = server[0].rpartition(":")
    with pytest.raises(Exception, match=r"can ?not find server that matches"):
        rpc.connect(host, int(port))
    with pytest.raises(DeviceError, match="runs only signed modules"):
        connect_rpc(server[0], setting.credentials(), 10)
    with pytest.raises(DeviceError, match="runs only signed modules"):
        check_device(server[0], targets.get("host", cores=1), setting.credentials())


@pytest.mark.parametrize("encrypted", [True, False])
def test_garbage_opens_no_session_and_harms_none(
    server: tuple[str, Path], setting: Setting, tmp_path: Path, encrypted: bool
) -> None:
    random, path = np.random.default_rng(0), setting.folder / "signed.twm"
    prefaces = [b"", b"TWPLAIN2", b"TWNOISE2", b"TWPLAIN2\x07\0\0\0modules", struct.pack("<iI", 0xFF271, 1 << 31)]
    with ExitStack() as own:
        address, credentials = server[0], setting.credentials() if encrypted else None
        if not encrypted:
            address = own.enter_context(device_server((), setting.program, tmp_path / "modules"))
        host, _, port = address.rpartition(":")
        for preface in prefaces * 4:
            with socket.create_connection((host, int(port)), 30) as client, contextlib.suppress(OSError):
                client.sendall(preface + random.bytes(int(random.integers(400))))
                client.shutdown(socket.SHUT_WR)
                client.makefile("rb").read()
        assert push(path, address, credentials=credentials, runs=1).difference < 1e-5


def test_sessions_are_several_and_bounded(server: tuple[str, Path], setting: Setting) -> None:
    """Two may be open; a third is refused at once, even with silent clients around."""
    address, path, credentials = server[0], setting.folder / "signed.twm", setting.credentials()
    host, _, port = address.rpartition(":")
    with ExitStack() as others:
        for _ in range(40):  # silent; more than may wait for their handshake
            others.enter_context(closing(socket.create_connection((host, int(port)), 30)))
        others.enter_context(closing(Connection(address, credentials)))
        assert push(path, address, credentials=credentials, runs=1).difference < 1e-5
        with closing(Connection(address, credentials)), pytest.raises(DeviceError, match="sessions are taken"):
            push(path, address, credentials=credentials)
        assert push(path, address, credentials=credentials, runs=1).difference < 1e-5


@pytest.mark.parametrize("damage", ["flipped", "empty", "unsigned"])
def test_an_active_module_that_is_not_usable_is_moved_aside(
    server: tuple[str, Path], setting: Setting, damage: str
) -> None:
    address, folder = server
    path = setting.folder / "signed.twm"
    active = folder / "active.twm"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    unsigned = (setting.folder / "unsigned.twm").read_bytes()
    found = {"flipped": bytes(content), "empty": b"", "unsigned": unsigned}[damage]
    active.write_bytes(found)
    result = push(path, address, credentials=setting.credentials(), runs=1)
    assert result.replaced is None
    assert result.moved_aside is not None
    assert "moved aside to rejected.twm" in result.moved_aside
    assert active.read_bytes() == path.read_bytes()
    assert (folder / "rejected.twm").read_bytes() == found
    (folder / "rejected.twm").unlink()
    assert push(path, address, credentials=setting.credentials(), runs=1).moved_aside is None


def test_limits_of_size(setting: Setting, tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    with device_server((), setting.program, folder, "--max-module-bytes", 1000) as address:
        with pytest.raises(DeviceError, match="upload failed: the size of a module must be a number from 1 to 1000"):
            push(setting.folder / "signed.twm", address)
        with closing(Connection(address)) as connection:
            connection.send_bytes(struct.pack("<I", 1 << 30))  # a frame that nobody would want to hold
            assert connection.receive_bytes() == b""
        assert names(folder) == []


def test_a_client_that_stops_is_let_go(setting: Setting, tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    with device_server((), setting.program, folder, "--idle", 1) as address:
        for requests in ((), ("upload 999",)):  # between requests, and in the middle of an upload
            with closing(Connection(address)) as connection, contextlib.suppress(DeviceError):
                for request in requests:
                    connection.call(request, what="step", hint="")
                assert connection.receive_bytes() == b""
        assert names(folder) == []


def test_a_full_disk(setting: Setting, tmp_path: Path) -> None:
    """A limit of file sizes simulates the full disk."""
    signed, folder = setting.folder / "signed.twm", tmp_path / "modules"
    padded = tmp_path / "padded.twm"
    artifact = read_artifact(signed)
    parts = (artifact.parameters, artifact.reference_inputs, artifact.reference_outputs)
    room = signed.stat().st_size + 1000
    changed = Artifact(artifact.manifest, memoryview(bytes(artifact.library) + bytes(2000)), *parts)
    compiler.artifact.write_artifact(changed, padded)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [str(setting.program), "0", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=limit) as process:
        try:
            address = address_of(process)
            push(signed, address, runs=1)
            with pytest.raises(
                DeviceError, match=r"upload failed: there is no room for \d+ bytes on the device's disk"
            ):
                push(padded, address)
        finally:
            process.kill()
    assert names(folder) == ["active.twm"]
    assert (folder / "active.twm").read_bytes() == signed.read_bytes()


def test_what_would_be_open_to_everyone_does_not_start(setting: Setting, tmp_path: Path) -> None:
    def started(*options: object) -> subprocess.CompletedProcess[str]:
        command = [str(setting.program), "0", "--folder", str(tmp_path / "modules"), *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    laptop, device = setting.folder / "laptop.pem.pub", setting.folder / "device.pem"
    for options, words in (
        (("--listen", "0.0.0.0"), "everyone who can connect to 0.0.0.0 could run code here. Make keys"),
        (("--key", device), "go together"),
        (("--key", laptop, "--client-key", laptop), "others may read the private key"),
        (("--key", device, "--client-key", setting.folder / "release.pem.pub"), "holds no X25519 public key"),
        (("--trusted-key", laptop), "holds no Ed25519 public key"),
        (("--sessions", "0"), "is not a number from 1"),
    ):
        done = started(*options)
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
    assert started("--unknown").returncode == 2
    folder = tmp_path / "modules"
    with (
        device_server((), setting.program, folder, "--listen", "0.0.0.0", "--insecure") as address,
        closing(Connection(address)) as connection,
    ):
        assert '"kernels": true' in connection.description


def test_a_kernel_is_timed_through_an_encrypted_session(setting: Setting, tmp_path: Path) -> None:
    from tvm import te

    from schedules.ir.tir import tvm

    a = te.placeholder((100,), name="a")
    function = te.create_prim_func([a, te.compute((100,), lambda i: a[i] * 2.0 + 1.0)])
    target = targets.get("host", cores=1)
    path = tmp_path / "kernel.so"
    target.export_library(tvm.compile(function, target=target.tvm_target()), path)
    folder = tmp_path / "modules"
    with device_server((), setting.program, folder, *setting.options, "--allow-tuning") as address:
        session = connect_rpc(address, setting.credentials(), 10)
        session.upload(str(path))
        loaded = session.load_module("kernel.so")
        large = np.random.default_rng(0).random(1 << 20, dtype=np.float32)
        np.testing.assert_array_equal(tvm.runtime.tensor(large, session.cpu()).numpy(), large)
        given = tvm.runtime.tensor(np.arange(100, dtype="float32"), session.cpu())
        out = tvm.runtime.tensor(np.zeros(100, "float32"), session.cpu())
        assert min(loaded.time_evaluator("main", session.cpu(), number=1, repeat=3)(given, out).results) > 0
        np.testing.assert_array_equal(out.numpy(), np.arange(100) * 2.0 + 1.0)


def test_kernels_are_timed_in_the_thread_pool_of_modules(setting: Setting, tmp_path: Path) -> None:
    options, environment = [*setting.options, "--allow-tuning"], {**os.environ, "TVM_NUM_THREADS": "1"}
    with device_server((), setting.program, tmp_path / "modules", *options, environment=environment) as address:
        session = connect_rpc(address, setting.credentials(), 10)
        set_threads = session.get_function("runtime.config_threadpool")
        for threads in (5, 2):
            set_threads(1, threads)
            # TVM's pool has as many as the machine has cores, and starts with the first kernel. Released helpers stay.
            programs = psutil.Process().children(recursive=True)
            assert max(each.num_threads() for each in programs if each.name().startswith("tensorwright-se")) == 5
        with pytest.raises(Exception, match="threads must be a number from 1 to"):
            set_threads(1, 0)


def test_addresses_of_this_machine() -> None:
    assert all(is_loopback(f"{host}:1") for host in ("127.0.0.1", "127.8.0.1", "localhost"))
    assert not any(is_loopback(f"{host}:1") for host in ("192.168.0.7", "0.0.0.0", "pi"))


def test_credentials_and_signing_keys_are_not_mixed_up(setting: Setting) -> None:
    with pytest.raises(OptionError, match="an X25519 private key is needed"):
        setting.credentials("release")
    with pytest.raises(OptionError, match="an Ed25519 private key is needed"):
        sign(setting.folder / "signed.twm", setting.folder / "laptop.pem")
    assert "private" not in repr(setting.credentials()).replace("device_key", "")
