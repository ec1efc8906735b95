"""The device-server suite: hostile clients of device servers, one open and one with keys, which run under sanitizers.

A case is one client: malformed prefaces, frames and requests, uploads that break off or lie, damaged modules, TVM's
RPC, handshakes that are damaged or replayed, floods of silent connections. Afterwards no session of it may be left, the
sanitizers must have reported nothing, and a sound client must be served.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import psutil

from compiler.artifact import KeyKind, write_new_keys
from compiler.device.connection import Connection
from compiler.device.credentials import Credentials, load_credentials
from compiler.device.noise import SECOND_MESSAGE_BYTES, Initiator
from compiler.errors import DeviceError
from compiler.support.processes import end_with_parent
from tests.compiler.device.servers import address_of
from tests.fuzz.artifact_mutations import STRUCTURE_MUTATIONS, Parts, pick
from tests.fuzz.artifacts import prepare as prepare_artifacts
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.device_driver import build_server, sanitizer_environment
from tests.fuzz.device_mutations import FORMAT_MUTATIONS
from tests.fuzz.outcome import Kind, Outcome

MEMORY_BYTES = -1
"""Address space of a worker: no limit, since AddressSanitizer reserves terabytes."""

_PLAIN, _NOISE, _RPC = b"TWPLAIN2", b"TWNOISE2", struct.pack("<i", 0xFF271)
_SECONDS = 20.0  # timeout of an answer
_END_SECONDS = 60.0  # timeout until the processes of a disconnected client have ended: a handshake may take 10
_MODULE_BYTES = 3_000_000
_LENGTHS = (0, 1, 4, 255, 256, 257, 1 << 16, 1 << 20, (1 << 20) + 1, 1 << 31, (1 << 32) - 1)
_NUMBERS = (
    b"0", b"1", b"-1", b"5", b"1e3", b"", b" ", b"\0", b"3000000", b"3000001", str(1 << 63).encode(), b"9" * 40, b"0x5",
)  # fmt: skip
_VERBS = (
    b"active", b"upload", b"check", b"verify", b"measure", b"times", b"activate", b"", b"\xff", b"modules", b"a" * 300,
)  # fmt: skip
_AFTER_UPLOAD = (b"check", b"verify", b"activate", b"upload 100", b"active")
_SHOWN = 3000
_REPORTS = ("AddressSanitizer", "runtime error", "the session crashed")
Random = np.random.Generator


@dataclass(frozen=True)
class Samples:
    """The server's program, keys of a device, a known client and an unknown one, and valid modules."""

    program: Path
    folder: Path
    modules: tuple[bytes, ...]

    def credentials(self, client: str) -> Credentials:
        """Paths of the keys of a client."""
        return load_credentials(self.folder / f"{client}.pem", self.folder / "device.pem.pub")


def prepare(folder: Path) -> Samples:
    """Build the server, keys and modules."""
    program = build_server()
    subprocess.run([program, "--new-key", folder / "device.pem"], check=True, capture_output=True)
    for name in ("laptop", "stranger"):
        write_new_keys(folder / f"{name}.pem", KeyKind.CONNECTION)
    return Samples(program, folder, prepare_artifacts(folder).files)


class Server:
    """A server with sanitizers, which ends with this process."""

    def __init__(self, samples: Samples, credentials: Credentials | None) -> None:
        self.credentials = credentials
        self.folder = Path(tempfile.mkdtemp(dir=samples.folder))
        keys = ("--key", samples.folder / "device.pem", "--client-key", samples.folder / "laptop.pem.pub")
        options = ("--sessions", 4, "--max-module-bytes", _MODULE_BYTES, "--idle", 15, *(keys if credentials else ()))
        command = [str(samples.program), "0", "--folder", str(self.folder / "modules"), *map(str, options)]
        self._errors = self.folder / "errors"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=sanitizer_environment(detect_leaks="0", log_path=str(self.folder / "sanitizer")),
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        self.address = address_of(self._process)

    def connect(self) -> socket.socket:
        """A new connection, on which nothing has been sent."""
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), _SECONDS)

    def verdict(self, by_rpc: bool) -> tuple[Kind, str]:
        """State of the server after a client left; `by_rpc`: the client may have used TVM's RPC."""
        ended = self._process.poll() is not None
        sessions = [] if ended else psutil.Process(self._process.pid).children(recursive=True)
        _, alive = psutil.wait_procs(sessions, timeout=_END_SECONDS)
        reports = []
        for each in self.folder.glob("sanitizer*"):
            report = each.read_text(errors="replace")
            each.unlink()
            # TVM's RPC allocates as much as its client requests, which may end this client's process, but no other.
            if not by_rpc or "SUMMARY: AddressSanitizer: out-of-memory" not in report:
                reports.append(report)
        said = self._errors.read_text(errors="replace") + "".join(reports)
        if self._process.poll() is not None or any(word in said for word in _REPORTS):
            _server.cache_clear()  # the next case starts another one
            self._process.kill()
            self._process.wait()
            return "crash", said[-_SHOWN:]
        if alive:
            return "hang", f"{len(alive)} process(es) are left"
        try:
            with contextlib.closing(Connection(self.address, self.credentials)) as connection:
                connection.call("active", what="a sound client", hint="")
        except DeviceError as error:
            return "wrong", f"a sound client is not served: {error}"
        return "refused", "left, and others are served"


@cache
def _server(samples: Samples, has_keys: bool) -> Server:
    """One server of each kind per worker process."""
    return Server(samples, samples.credentials("laptop") if has_keys else None)


def case(samples: Samples, seed: int) -> Outcome:
    """Act as one hostile client, then check the server."""
    random = np.random.default_rng(seed)
    attack = ATTACKS[seed % len(ATTACKS)]
    label = attack.__name__.strip("_")
    server = _server(samples, attack in _WITH_KEYS or (attack in _WITH_BOTH and random.random() < 0.5))
    try:
        wrong = attack(samples, server, random)
    except (OSError, DeviceError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        return Outcome("wrong", label, wrong)
    kind, detail = server.verdict(attack in _BY_RPC)
    return Outcome(kind, label, detail)


def _frame(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _talk(server: Server, sent: bytes, *, half: bool = True) -> bytes:
    """Send, shut down sending, and read the answer."""
    with server.connect() as client:
        with contextlib.suppress(OSError):
            client.sendall(sent)
            if half:
                client.shutdown(socket.SHUT_WR)
        return _rest(client)


def _rest(client: socket.socket) -> bytes:
    client.settimeout(_SECONDS)
    answer = b""
    with contextlib.suppress(OSError):
        while part := client.recv(1 << 16):
            answer += part
    return answer


def _answers(received: bytes) -> list[bytes]:
    """Frames in a session's answers."""
    found = []
    while len(received) >= 4:
        (length,) = struct.unpack_from("<I", received)
        found.append(received[4 : 4 + length])
        received = received[4 + length :]
    return found


def _no_session(received: bytes) -> str:
    """The fault if more than the answer to a handshake was received; "" if none."""
    handshake = len(_NOISE) + SECOND_MESSAGE_BYTES if received.startswith(_NOISE) else 0
    return "" if received.startswith(b"TWERROR2") or len(received) == handshake else "a session began"


def _preface(samples: Samples, server: Server, random: Random) -> str:
    """Send another protocol, a truncated preface, or random bytes."""
    client = _RPC + struct.pack("<i", 6) + b"client"
    known = (b"", _PLAIN, _NOISE, _RPC, client, b"GET / HTTP/1.1\r\n\r\n", _PLAIN[:4], _NOISE + bytes(95))
    _talk(server, pick(known, random) + random.bytes(int(random.integers(400))), half=bool(random.random() < 0.7))
    return ""


def _rpc(samples: Samples, server: Server, random: Random) -> str:
    """TVM's RPC with wrong lengths."""
    length = int(pick((-1, 0, 6, 4096, 4097, (1 << 31) - 1, -(1 << 31)), random))
    packet = struct.pack("<q", int(pick((-1, 0, 8, 1 << 31, (1 << 63) - 1), random)))
    _talk(server, _RPC + struct.pack("<i", length) + b"client" + packet + random.bytes(int(random.integers(200))))
    return ""


def _frames(samples: Samples, server: Server, random: Random) -> str:
    """Frames that are too long, empty, or truncated."""
    parts = [_PLAIN, *([_frame(b"modules")] * int(random.integers(2)))]
    for _ in range(int(random.integers(1, 5))):
        parts.append(struct.pack("<I", int(pick(_LENGTHS, random))) + random.bytes(int(random.integers(600))))
    _talk(server, b"".join(parts))
    return ""


def _verbs(samples: Samples, server: Server, random: Random) -> str:
    """Requests with invalid numbers, in any order."""
    requests = [b" ".join((pick(_VERBS, random), pick(_NUMBERS, random))) for _ in range(int(random.integers(1, 12)))]
    _talk(server, _PLAIN + _frame(b"modules") + b"".join(map(_frame, requests)))
    return ""


def _upload(samples: Samples, server: Server, random: Random) -> str:
    """Upload more or less than declared, in pieces of any size, truncated, with requests after it."""
    content = pick((*samples.modules, random.bytes(5000)), random)
    said = int(pick((len(content), len(content) - 1, len(content) + 1, 1, _MODULE_BYTES, _MODULE_BYTES + 1), random))
    piece = int(pick((1, 100, 1 << 16, 1 << 20), random))
    pieces = [_frame(content[start : start + piece]) for start in range(0, min(len(content), 400 * piece), piece)]
    if random.random() < 0.3:
        pieces.insert(int(random.integers(len(pieces) + 1)), _frame(b""))
    sent = _PLAIN + _frame(b"modules") + _frame(b"upload %d" % said) + b"".join(pieces)
    sent += b"".join(_frame(pick(_AFTER_UPLOAD, random)) for _ in range(3))
    _talk(server, sent[: int(random.integers(len(sent)))] if random.random() < 0.4 else sent)
    return ""


def _module(samples: Samples, server: Server, random: Random) -> str:
    """A damaged module, mostly with right checksums."""
    content = pick(samples.modules, random)
    if random.random() < 0.3:
        content = pick(BYTE_MUTATIONS, random)(content, random)
    else:
        parts = Parts.of(content)
        pick((*STRUCTURE_MUTATIONS, *FORMAT_MUTATIONS), random)(parts, random)
        with contextlib.suppress(UnicodeEncodeError, ValueError):  # what the mutation put there is no name of a section
            content = parts.assemble()
    pieces = b"".join(_frame(content[start : start + (1 << 20)]) for start in range(0, len(content), 1 << 20))
    upload = _frame(b"upload %d" % len(content)) + pieces
    after = b"".join(map(_frame, (b"check", b"activate")))
    answers = _answers(_talk(server, _PLAIN + _frame(b"modules") + upload + after))
    return "a module became active that was not run" if len(answers) == 5 and answers[4].startswith(b"ok") else ""


def _silent(samples: Samples, server: Server, random: Random) -> str:
    """More silent or incomplete connections than may wait, next to a valid client."""
    with contextlib.ExitStack() as open_:
        for _ in range(int(random.integers(5, 60))):
            client = open_.enter_context(server.connect())
            client.sendall(pick((b"", _PLAIN, _NOISE, _RPC, _NOISE + bytes(50)), random))
        began = time.monotonic()
        with contextlib.closing(Connection(server.address, server.credentials)):
            took = time.monotonic() - began
    return f"a client waited for {took:.0f} s" if took > _SECONDS / 2 else ""


def _handshake(samples: Samples, server: Server, random: Random) -> str:
    """A first message that is damaged, of another key, or with a point of small order; then plain-text frames."""
    name = str(pick(("laptop", "stranger"), random))
    credentials = samples.credentials(name)
    message = bytearray(_NOISE + Initiator(credentials.private_key, credentials.device_key, _NOISE).first_message())
    damage = int(random.integers(4))
    if damage == 0:
        message[int(random.integers(8, len(message)))] ^= 1 << int(random.integers(8))
    elif damage == 1:
        message[8:40] = pick((bytes(32), b"\1" + bytes(31), b"\xff" * 32), random)
    elif damage == 2:
        del message[int(random.integers(8, len(message))) :]
    elif name == "laptop":
        return _tampered(server, random)
    return _no_session(_talk(server, bytes(message) + _frame(b"modules")))


def _tampered(server: Server, random: Random) -> str:
    """A valid handshake, then messages that are not encrypted with its keys, or out of order."""
    assert server.credentials is not None
    handshake = Initiator(server.credentials.private_key, server.credentials.device_key, _NOISE)
    with server.connect() as client:
        client.sendall(_NOISE + handshake.first_message())
        answer = client.recv(len(_NOISE) + SECOND_MESSAGE_BYTES, socket.MSG_WAITALL)
        send, _ = handshake.read_second(answer[len(_NOISE) :])
        if random.random() < 0.5:
            send.encrypt(b"")  # a message that never arrives
        message = bytearray(send.encrypt(_frame(b"modules")))
        if random.random() < 0.5:
            message[int(random.integers(len(message)))] ^= 1
            message = bytearray(random.bytes(len(message)))
        length = int(pick((len(message), 0, 15, 16, 65535), random))
        client.sendall(struct.pack("<H", length) + bytes(message))
        client.shutdown(socket.SHUT_WR)
        return _no_session(_rest(client))


class _Recorder(Connection):
    """A valid client that records its messages."""

    def __init__(self, server: Server) -> None:
        self.sent: list[bytes] = []
        super().__init__(server.address, server.credentials)

    def _sealed(self, data: bytes) -> bytes:
        self.sent.append(super()._sealed(data))
        return self.sent[-1]

    def repeat(self, place: int) -> bytes:
        """Replay the messages, and return the answers until the connection ends."""
        self._socket.sendall(self.sent[place])
        self._socket.shutdown(socket.SHUT_WR)
        return _rest(self._socket)


def _replay(samples: Samples, server: Server, random: Random) -> str:
    """Replay all messages of a valid client in a new connection, or one of them in its own session."""
    with contextlib.closing(_Recorder(server)) as recorded:
        recorded.call("active", what="a sound client", hint="")
        if random.random() < 0.5:
            place = int(random.integers(len(recorded.sent)))
            return f"message {place} was answered when it came again" if recorded.repeat(place) else ""
    return _no_session(_talk(server, b"".join(recorded.sent)))


_BY_RPC = (_preface, _rpc)
_WITH_KEYS = (_handshake, _replay)
_WITH_BOTH = (_preface, _rpc, _silent)
ATTACKS = (_preface, _rpc, _frames, _verbs, _upload, _module, _module, _silent, *_WITH_KEYS, *_WITH_KEYS)
